"""What every executor is asked, and what it answers: one signature."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from ritornello.cells.cell import Cell
from ritornello.structures.schedule import Schedule


@dataclass(frozen=True)
class Request:
    """A cell to unfold over a schedule.

    Attributes:
        cell: the cell, or a module called like one.
        x: (schedule.rows, features), in the schedule's order.
        entry: the states that sequences enter with, fields (schedule.entries, size), in the order of entries.
        blank: the state a row without predecessors reads after a reset, fields (1, size).
        schedule: the levels to walk.
        every_field: answer with the rows of all fields of the state, not of the output alone.
        checkpointed: keep O(√T) states, and compute the rest once more in the backward pass.
        fresh: whether entry is the blank state, and nobody wants its gradient.
        damping: (schedule.rows, 1): factors of what goes back from each row to its predecessor; None: 1 everywhere.
        found: what an executor found out when it was asked whether it supports the request, for when it runs it.
    """

    cell: Cell
    x: Tensor
    entry: Any
    blank: Any
    schedule: Schedule
    every_field: bool = False
    checkpointed: bool = False
    damping: Tensor | None = None
    fresh: bool = False
    found: dict[str, Any] = field(default_factory=dict, compare=False)


class Result(NamedTuple):
    """What unfolding gives.

    Attributes:
        rows: fields (schedule.rows, size) in the schedule's order: the output alone, or every field.
        last: each sequence's final state, fields (schedule.entries, size) in the order of sequences.
    """

    rows: tuple[Tensor, ...]
    last: Any


class Executor(Protocol):
    """A way to run a request. All executors have this signature; `reference` is what each is tested against."""

    name: str

    def supports(self, request: Request) -> str | None:
        """None where the request can be run, else the reason why not."""

    def run(self, request: Request) -> Result:
        """Unfolds what it was asked about, and supports; differentiable in x, entry, blank and the parameters."""
