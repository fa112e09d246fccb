"""A schedule as the compiled machine reads it."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch

from ritornello.structures.schedule import Level, Schedule

_DENSE: OrderedDict[tuple[int, int], tuple[tuple[Level, ...], Any]] = OrderedDict()  # by identity, kept alive


def core_levels(schedule: Schedule) -> Any:
    """The levels, converted; those of dense chains, which schedules share, once."""
    from ritornello import _core

    levels = schedule.levels
    key = (id(levels), schedule.entries)
    found = _DENSE.get(key)
    if found is not None and schedule.last is None:
        return found[1]
    starts = [0, *(level.stop for level in levels)]
    if all(isinstance(level.source, int) for level in levels):
        made = _core.Levels(schedule.entries, starts, [], 1, [], [])
        if schedule.last is None:
            _DENSE[key] = (levels, made)
            if len(_DENSE) > 64:
                _DENSE.popitem(last=False)
        return made
    assert schedule.last is not None
    source = torch.cat([level.source for level in levels if not isinstance(level.source, int)]).flatten().tolist()
    last = schedule.last if schedule.entry is None else schedule.last[schedule.entry]
    owner = _owners(schedule)
    return _core.Levels(schedule.entries, starts, source, 1, last.tolist(), owner)


def _owners(schedule: Schedule) -> list[int]:
    """Which entry each row belongs to, where that is not its position in its level."""
    if schedule.entry is not None or isinstance(schedule.levels[0].source, int):
        return []
    owner: list[int] = []
    first = schedule.first_row
    for level in schedule.levels:
        assert not isinstance(level.source, int)
        for row in level.source[:, 0].tolist():
            owner.append(row - 1 if row < first else owner[row - first])
    return owner


def core_segments(schedule: Schedule) -> list[Any]:
    """The levels in about √T runs of about √T, each a structure of its own that begins where the one before ended."""
    from ritornello import _core

    levels = schedule.levels
    size = max(1, math.isqrt(len(levels)))
    owner = _owners(schedule)
    found = []
    for first in range(0, len(levels), size):
        part = levels[first : first + size]
        begin, stop = part[0].start, part[-1].stop
        starts = [0, *(level.stop - begin for level in part)]
        if isinstance(part[0].source, int):
            found.append(_core.Levels(schedule.entries, starts, [], 1, [], []))
            continue
        rows = owner[begin:stop] or [row for level in part for row in range(level.stop - level.start)]
        source, last = _within(schedule, part, rows)
        found.append(_core.Levels(schedule.entries, starts, source, 1, last, owner[begin:stop]))
    return found


def _within(schedule: Schedule, part: Sequence[Level], owner: Sequence[int]) -> tuple[list[int], list[int]]:
    """Sources and final rows of a run of levels, in a table of its own.

    What an earlier run computed is an entry state here: that of the entry which the row belongs to.
    """
    begin, first_row = part[0].start, schedule.first_row
    source: list[int] = []
    for level in part:
        assert not isinstance(level.source, int)
        for row in level.source[:, 0].tolist():
            if row - first_row >= begin:
                row -= begin
            elif row:
                row = 1 + owner[len(source)]
            source.append(row)
    last = list(range(1, schedule.entries + 1))
    for row, entry in enumerate(owner):
        last[entry] = first_row + row
    return source, last
