"""What was measured, and on what."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from ritornello import __version__
from ritornello.processor import instruction_set


def about() -> dict[str, Any]:
    """Processor, instruction set, threads, versions, commit."""
    return {
        "device": processor(),
        "instruction_set": instruction_set(),
        "threads": torch.get_num_threads(),
        "ritornello": __version__,
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def processor() -> str:
    """The processor's name, and how many cores there are."""
    import os

    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def commit() -> str | None:
    """The commit of a checkout, with a + where files differ from it; None for an installed package."""
    folder = Path(__file__).parent
    git = ["git", "-C", str(folder)]
    try:
        root = subprocess.run([*git, "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=True)
        if Path(root.stdout.strip()) / "src" / "ritornello" / "bench" != folder.resolve():
            return None
        name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        status = ["status", "--porcelain", "--untracked-files=no"]
        changed = subprocess.run([*git, *status], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return name.stdout.strip() + ("+" if changed.stdout.strip() else "")
