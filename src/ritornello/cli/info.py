"""rit info: what a run is, or what this installation has."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def info(
    run: Annotated[
        str, typer.Argument(help="The run's folder; without it, what is installed.", show_default="none")
    ] = "",
) -> None:
    """Describe a run, or this installation."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in (_run(run) if run else _installation()).items():
        table.add_row(name, escape(str(value)))
    Console().print(table, soft_wrap=True)


def _installation() -> dict[str, Any]:
    import platform

    import torch

    from ritornello import __version__
    from ritornello.cells import CELLS, TREE_CELLS
    from ritornello.executors import EXECUTORS
    from ritornello.processor import instruction_set

    return {
        "ritornello": __version__,
        "python": platform.python_version(),
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "cells": ", ".join(sorted(CELLS)),
        "cells for trees": ", ".join(sorted(TREE_CELLS)),
        "executors": ", ".join(EXECUTORS),
        "instructions": instruction_set() or "no compiled extension",
    }


def _run(path: str) -> dict[str, Any]:
    from ritornello.training.files import read_tensors
    from ritornello.training.run import Run

    found = Run.open(path)
    rows: dict[str, Any] = {
        "run": path,
        "task": found.config["task"],
        "written by": found.config.get("ritornello", "?"),
    }
    for section, values in found.config.items():
        if isinstance(values, dict):
            rows[section] = ", ".join(f"{name}={value!r}" for name, value in values.items())
    kept = None
    if found.model_file.exists():
        tensors, about = read_tensors(found.model_file)
        rows["numbers in the model"] = f"{sum(tensor.numel() for tensor in tensors.values()):,}"
        kept = about.get("step", "-")
        rows["weights of step"] = kept
    metrics = found.metrics()
    rows["evaluations"] = len(metrics)
    if metrics:
        best = next((row for row in metrics if row["step"] == kept), metrics[-1])
        rows["best"] = ", ".join(f"{n} {v:.4f}" for n, v in best.items() if n.startswith("valid_"))
        rows["last"] = ", ".join(f"{n} {v:,.4g}" for n, v in metrics[-1].items())
    return rows
