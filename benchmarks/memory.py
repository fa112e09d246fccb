"""Does a text larger than memory train in bounded memory?

    python benchmarks/memory.py [--gigabytes 1.0] [--steps 100] [--level char]

Writes a text of that size (the embedded corpus over and over), trains on it in a process of its own, and prints that
process's peak resident memory, as the operating system counted it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ritornello.data.corpus import help_topics


def write_text(path: Path, size: int) -> None:
    piece = help_topics().encode()
    with open(path, "wb") as file:
        while file.tell() < size:
            file.write(piece)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--level", default="char")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        write_text(text, int(options.gigabytes * 1e9))
        program = [sys.executable, "-c", "from ritornello.cli import main; main()"]
        flags = [
            "--train",
            str(text),
            "--out",
            f"{folder}/run",
            "--level",
            options.level,
            "--steps",
            str(options.steps),
        ]
        begin = time.perf_counter()
        process = subprocess.Popen([*program, "train", "lm", *flags, "--evaluations", "2"])
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit("training failed")
        seconds = time.perf_counter() - begin
        print(f"{text.stat().st_size / 1e9:.2f} GB of text at level {options.level}, {options.steps} steps: ", end="")
        print(f"peak resident memory {usage.ru_maxrss * 1024 / 1e9:.2f} GB, {seconds:.0f} s")


if __name__ == "__main__":
    main()
