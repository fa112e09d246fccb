"""What the engine sees of a structure: levels of rows whose predecessors all lie in earlier levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function


class Level(NamedTuple):
    """Rows that are computed at once.

    Attributes:
        start, stop: the level's rows, contiguous in the schedule's order.
        source: where their predecessors' states lie in the schedule's table. An integer: one predecessor each,
            in consecutive rows of the table from there on. A tensor (stop - start, predecessors): row numbers.
    """

    start: int
    stop: int
    source: int | Tensor


class Inputs(NamedTuple):
    """The rows that have an x; that of the others is zero.

    Attributes:
        start, stop: rows in the schedule's order; levels lie within or without.
        order: (stop - start,) position of each of them in the flattened input, or None where that is the row itself.
    """

    start: int
    stop: int
    order: Tensor | None = None


@dataclass(frozen=True)
class Schedule:
    """A structure, ready to be walked: the same for a chain, a ragged batch, a tree.

    States live in a *table* with `1 + entries + rows` rows: row 0 is the blank state (zero or learnt), rows 1 to
    `entries` are the states that sequences enter with, and row `1 + entries + i` is the state of schedule row i.

    Attributes:
        entries: how many sequences (or trees) there are.
        rows: how many rows are computed.
        levels: in the order of computation; together they cover all rows once.
        order: (rows,) position of each schedule row in the flattened input, or None where that is the row itself.
        entry: (entries,) which sequence each entry belongs to, or None where that is the entry itself.
        last: (entries,) table row of each sequence's final state, or None where the final states are the last
            level's rows in the order of the sequences.
        leaves: how many rows, the first ones, are leaves of trees: they have no predecessors, and if their cell reads
            any it reads their tree's entry state.
        inputs: the rows that have an x, where not all have one.
    """

    entries: int
    rows: int
    levels: tuple[Level, ...]
    order: Tensor | None = None
    entry: Tensor | None = None
    last: Tensor | None = None
    leaves: int = 0
    inputs: Inputs | None = None

    @property
    def first_row(self) -> int:
        """Table row of schedule row 0."""
        return 1 + self.entries


def to_rows(x: Tensor, schedule: Schedule) -> Tensor:
    """(positions, features) to (rows that have an x, features) in the schedule's order."""
    order = schedule.order if schedule.inputs is None else schedule.inputs.order
    if order is None:
        return x
    order = order.to(x.device)
    return _Gathered.apply(x, order) if _differentiated(x) else _Gathered.forward(x, order)


def from_rows(rows: Tensor, schedule: Schedule, positions: int) -> Tensor:
    """The way back: (schedule.rows, size) to (positions, size), zeros where there is padding."""
    if schedule.order is None:
        return rows
    order = schedule.order.to(rows.device)
    scatter = _Scattered.apply if _differentiated(rows) else _Scattered.forward
    return scatter(rows, order, positions)


def _differentiated(x: Tensor) -> bool:
    """Whether somebody may ask for a derivative; a node of autograd's graph costs 20 microseconds."""
    return (x.requires_grad and torch.is_grad_enabled()) or torch._C._are_functorch_transforms_active()


class _Gathered(Function):
    """Rows by number, none of them twice: so its adjoint is a copy, where torch has to add."""

    @staticmethod
    def forward(x: Tensor, order: Tensor) -> Tensor:
        return x.index_select(0, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        x, ctx.order = inputs
        ctx.positions = x.shape[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Scattered.apply(gradient, ctx.order, ctx.positions), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _Gathered.apply(tangent, ctx.order)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], x: Tensor, order: Tensor) -> tuple[Tensor, int]:
        return _Gathered.apply(x.movedim(in_dims[0], 1), order), 1


class _Scattered(Function):
    """The adjoint of `_Gathered`."""

    @staticmethod
    def forward(rows: Tensor, order: Tensor, positions: int) -> Tensor:
        make = rows.new_empty if len(rows) == positions else rows.new_zeros  # zeros are for padding
        return make(positions, *rows.shape[1:]).index_copy_(0, order, rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        _, ctx.order, ctx.positions = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Gathered.apply(gradient, ctx.order), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _Scattered.apply(tangent, ctx.order, ctx.positions)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None, None], rows: Tensor, *order: Any) -> tuple[Tensor, int]:
        return _Scattered.apply(rows.movedim(in_dims[0], 1), *order), 1
