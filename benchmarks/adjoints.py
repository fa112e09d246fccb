"""What does each way back through time cost, in time and in memory?

    python benchmarks/adjoints.py [--time 1000] [--batch 16] [--hidden 256] [--rounds 5]

An LSTM over a batch of sequences, forward and backward, every adjoint side by side in one process: in each round every
one is run once. Printed is the ratio of the best times, and between what the ratios of the rounds lie. Memory is what a
process of its own holds at its peak beyond what it held before, as Linux counts it. First the exact ones must agree.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch

import ritornello as rit

EXACT = ("full", "checkpointed")


def step(unfold: rit.Unfold, x: torch.Tensor) -> torch.Tensor:
    unfold.zero_grad()
    outputs, _ = unfold(x)
    outputs.mean().backward()
    return unfold.cell.U.weight.grad


def seconds(unfold: rit.Unfold, x: torch.Tensor) -> float:
    begin = time.perf_counter()
    step(unfold, x)
    return time.perf_counter() - begin


def megabytes(way: str, cell: rit.Cell, x: torch.Tensor) -> float:
    """The peak of one step beyond what was held before, in a process of its own: nothing freed earlier is at hand."""

    def measured() -> float:
        unfold = rit.Unfold(cell, adjoint=way)
        step(unfold, x[:2])  # records the cell
        before = held("VmRSS")
        step(unfold, x)
        return (held("VmHWM") - before) / 1000

    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, str(measured()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        return float(answer.read())


def held(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("time", 1000), ("batch", 16), ("hidden", 256), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    x = torch.randn(options.time, options.batch, options.hidden)
    cell = rit.LSTM(options.hidden, options.hidden)
    k = max(2, options.time // 25)
    texts = (*EXACT, f"truncated:{k},{k}", f"truncated:{k},{2 * k}", f"randomized:{1 / k:g}")
    ways = (*texts, *(f"{text},checkpointed" for text in texts[2:]))
    peaks = {way: megabytes(way, cell, x) for way in ways}  # before torch has threads of its own
    unfolds = {way: rit.Unfold(cell, adjoint=way) for way in ways}
    one, other = (step(unfolds[way], x).clone() for way in EXACT)
    torch.testing.assert_close(one, other)

    rounds = [{way: seconds(unfold, x) for way, unfold in unfolds.items()} for _ in range(options.rounds)]
    print(f"LSTM {options.hidden}, T {options.time}, B {options.batch}, {torch.get_num_threads()} threads, ", end="")
    print(f"torch {torch.__version__}; full: {min(r['full'] for r in rounds) * 1e3:.0f} ms, {peaks['full']:.0f} MB")
    for way in ways:
        ratios = sorted(each[way] / each["full"] for each in rounds)
        best = min(each[way] for each in rounds) / min(each["full"] for each in rounds)
        print(f"  {way:32} time {best:5.2f} (rounds: {ratios[0]:.2f} to {ratios[-1]:.2f})", end="")
        print(f"   memory {peaks[way] / max(peaks['full'], 1):5.2f} ({peaks[way]:.0f} MB)")


if __name__ == "__main__":
    main()
