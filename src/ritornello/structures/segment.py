"""A schedule in pieces: runs of its levels, each a schedule that begins with the states that the one before left."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ritornello.structures.schedule import Level, Schedule


def is_chain(schedule: Schedule) -> bool:
    """Whether it has no trees in it."""
    return not schedule.leaves


def row_levels(schedule: Schedule) -> Tensor:
    """(rows,) the number of each row's level: along a chain, how many steps were walked before it.

    Example:
        >>> from ritornello.structures import chain
        >>> row_levels(chain(3, 2, lengths=torch.tensor([1, 3]))).tolist()
        [0, 0, 1, 2]
    """
    sizes = torch.tensor([level.stop - level.start for level in schedule.levels], dtype=torch.long, device="cpu")
    return torch.arange(len(sizes), device="cpu").repeat_interleave(sizes)


def row_sources(schedule: Schedule) -> Tensor:
    """(rows,) the table row of each row's one predecessor."""
    found = [
        torch.arange(source, source + stop - start, device="cpu") if isinstance(source, int) else source[:, 0]
        for start, stop, source in schedule.levels
    ]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.long, device="cpu")


def row_entries(schedule: Schedule) -> Tensor:
    """(rows,) which entry each row of chains belongs to: its position in its level."""
    rows = torch.arange(schedule.rows, device="cpu")
    starts = torch.tensor([level.start for level in schedule.levels], dtype=torch.long, device="cpu")
    return rows - starts[row_levels(schedule)]


def segments(schedule: Schedule, size: int = 0) -> list[Schedule]:
    """The levels in runs of `size` (by default √T, so that there are about √T of them); rows have one predecessor each.

    What an earlier run computed is an entry state here: that of the entry which the row belongs to. x and the results
    are to be cut by rows, so that no segment has an `order`.

    Example:
        >>> from ritornello.structures import chain
        >>> [(part.rows, [level.source for level in part.levels]) for part in segments(chain(5, 2), 3)]
        [(6, [1, 3, 5]), (4, [1, 3])]
    """
    size = size or max(1, math.isqrt(len(schedule.levels)))
    entries = row_entries(schedule)
    runs = [schedule.levels[first : first + size] for first in range(0, len(schedule.levels), size)]
    return [_segment(schedule, run, entries[run[0].start : run[-1].stop]) for run in runs]


def _segment(schedule: Schedule, run: Sequence[Level], entries: Tensor) -> Schedule:
    begin, first_row = run[0].start, schedule.first_row
    levels = []
    for start, stop, source in run:
        if isinstance(source, int):
            source = 1 if start == begin else source - begin
        else:
            carried = torch.where(source > 0, 1 + entries[start - begin : stop - begin, None], 0)
            source = torch.where(source >= first_row + begin, source - begin, carried)
        levels.append(Level(start - begin, stop - begin, source))
    last = None if schedule.last is None else _last(schedule, entries)
    return Schedule(schedule.entries, len(entries), tuple(levels), entry=schedule.entry, last=last)


def _last(schedule: Schedule, entries: Tensor) -> Tensor:
    """Table rows of the final states of a run whose rows belong to these entries; of entries without, what entered."""
    rows = torch.arange(schedule.first_row, schedule.first_row + len(entries), device="cpu")
    found = torch.arange(1, schedule.first_row, device="cpu").scatter_reduce(0, entries, rows, "amax")
    return found if schedule.entry is None else torch.empty_like(found).index_copy_(0, schedule.entry, found)
