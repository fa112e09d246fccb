"""What the engine sees of a structure: levels of rows whose predecessors all lie in earlier levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


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
    """

    entries: int
    rows: int
    levels: tuple[Level, ...]
    order: Tensor | None = None
    entry: Tensor | None = None
    last: Tensor | None = None

    @property
    def first_row(self) -> int:
        """Table row of schedule row 0."""
        return 1 + self.entries


def to_rows(x: Tensor, schedule: Schedule) -> Tensor:
    """(positions, features) to (schedule.rows, features) in the schedule's order."""
    return x if schedule.order is None else x[schedule.order.to(x.device)]


def from_rows(rows: Tensor, schedule: Schedule, positions: int) -> Tensor:
    """The way back: (schedule.rows, size) to (positions, size), zeros where there is padding."""
    if schedule.order is None:
        return rows
    return rows.new_zeros(positions, rows.shape[-1]).index_copy(0, schedule.order.to(rows.device), rows)
