"""Writes the support table, as the executors tell it, between the README's marks."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from ritornello.cells import CELLS
from ritornello.errors import CellError
from ritornello.executors import EXECUTORS, Request
from ritornello.structures import chain, forest

README = Path(__file__).parent.parent / "README.md"
STRUCTURES = {
    "chain": chain(3, 2),
    "reversed": chain(3, 2, reverse=True),
    "ragged": chain(3, 2, lengths=torch.tensor([3, 1])),
    "resets": chain(3, 2, resets=torch.tensor([[False, False], [True, False], [False, True]])),
    "tree": forest([[2, 2, -1]]),
}


def support_table() -> str:
    """For each structure the executors that run it, in a row for all cells that are alike."""
    lines = ["| cells | " + " | ".join(STRUCTURES) + " |", "|---" * (len(STRUCTURES) + 1) + "|"]
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, kind in sorted(CELLS.items()):
        alike.setdefault(tuple(_executors(kind(2, 4), schedule) for schedule in STRUCTURES.values()), []).append(name)
    for entries, names in alike.items():
        lines.append(f"| {', '.join(f'`{name}`' for name in names)} | {' | '.join(entries)} |")
    return "\n".join(lines)


def _executors(cell, schedule) -> str:
    x, like = torch.zeros(schedule.rows, cell.input_size), torch.zeros(())
    request = Request(cell, x, cell.zero_state(schedule.entries, like), cell.zero_state(1, like), schedule)
    return ", ".join(name for name in EXECUTORS if _runs(name, request)) or "no"


def _runs(name: str, request: Request) -> bool:
    try:
        with torch.no_grad():
            return EXECUTORS[name].supports(request) is None and bool(EXECUTORS[name].run(request))
    except CellError:
        return False  # a cell for chains, over a tree


def with_table(text: str) -> str:
    return re.sub(r"(<!-- support -->\n).*?(<!-- /support -->)", rf"\1{support_table()}\n\2", text, flags=re.S)


if __name__ == "__main__":
    README.write_text(with_table(README.read_text("utf-8")), "utf-8")
