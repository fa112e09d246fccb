"""A schedule as the compiled machine reads it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from ritornello.structures import Level, Schedule, row_entries, row_sources, segments

_DENSE: OrderedDict[tuple[int, int], tuple[tuple[Level, ...], Any]] = OrderedDict()  # by identity, kept alive


def core_levels(schedule: Schedule) -> Any:
    """The levels, converted; those of dense chains, which schedules share, once."""
    levels = schedule.levels
    key = (id(levels), schedule.entries)
    found = _DENSE.get(key)
    if found is not None and schedule.last is None:
        return found[1]
    made = _converted(schedule)
    if schedule.last is None and all(isinstance(level.source, int) for level in levels):
        _DENSE[key] = (levels, made)
        if len(_DENSE) > 64:
            _DENSE.popitem(last=False)
    return made


def core_segments(schedule: Schedule) -> list[Any]:
    """About √T runs of about √T levels, each a structure of its own that begins where the one before ended."""
    return [_converted(part) for part in segments(schedule)]


def _converted(schedule: Schedule) -> Any:
    from ritornello import _core

    levels = schedule.levels
    starts = [0, *(level.stop for level in levels)]
    if all(isinstance(level.source, int) for level in levels):
        return _core.Levels(schedule.entries, starts, [], 1, [], [])
    assert schedule.last is not None
    last = schedule.last if schedule.entry is None else schedule.last[schedule.entry]
    owner = row_entries(schedule).tolist() if schedule.entry is None else []  # in chains: its position in the level
    return _core.Levels(schedule.entries, starts, row_sources(schedule).tolist(), 1, last.tolist(), owner)
