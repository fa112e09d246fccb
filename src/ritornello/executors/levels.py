"""A schedule as the compiled machine reads it."""

from __future__ import annotations

from collections import OrderedDict
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
    if schedule.entry is not None:
        return []
    owner: list[int] = []
    first = schedule.first_row
    for level in schedule.levels:
        assert not isinstance(level.source, int)
        for row in level.source[:, 0].tolist():
            owner.append(row - 1 if row < first else owner[row - first])
    return owner
