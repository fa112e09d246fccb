"""Chains on the compiled machine: rows of one kind, with one predecessor each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ritornello.executors.plan import Compiled
from ritornello.executors.run import Run, _core, addresses, shapes, strides
from ritornello.structures import Level, Schedule, row_sources, segments

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
    levels = schedule.levels
    starts = [0, *(level.stop for level in levels)]
    if all(isinstance(level.source, int) for level in levels):
        return _core.Levels(schedule.entries, starts, [], [])
    assert schedule.last is not None
    last = schedule.last if schedule.entry is None else schedule.last[schedule.entry]
    return _core.Levels(schedule.entries, starts, row_sources(schedule).tolist(), last.tolist())


class ChainRun(Run):
    """A run along chains; with `checkpointed` it keeps O(√T) states and computes the others once more."""

    def __init__(self, compiled: Compiled, schedule: Schedule, *rest: Any, checkpointed: bool = False) -> None:
        super().__init__([compiled], schedule, *rest)
        self.core = compiled.core
        self.levels = core_levels(schedule)
        self.segments = core_segments(schedule) if checkpointed and schedule.levels else []
        self._consecutive = all(isinstance(level.source, int) for level in schedule.levels[:1])
        self.checkpoints: list[Tensor] = []

    def forward(self, tensors: Sequence[Tensor], out: Sequence[Tensor] = (), frame: int = 0) -> list[Tensor]:
        """As of every run.

        Args:
            tensors: x, entry, blank, parameter values.
            out: memory for all rows' states, if it is given from outside.
            frame: address of the memory for what is kept for the backward pass, if it is given from outside.
        """
        x, entry, blank, values = self.split(tensors)
        gradients = self.wants.gradients
        self.out = list(out) or [x.new_empty(self.schedule.rows, size) for size in self.sizes[: self.rows]]
        if frame:
            self.frames = [frame]
        elif not self.segments:
            frames = [self.core.frame_stride * self.schedule.rows] if gradients else []
            self._take(frames, states=gradients or not self._consecutive)
        last = [x.new_empty(self.schedule.entries, size) for size in self.sizes]
        count = (max(0, len(self.segments) - 1), self.schedule.entries)
        self.checkpoints = [x.new_empty(*count, size) for size in self.sizes] if self.segments else []
        self.core.forward(
            self.levels,
            self.segments,
            addresses(self.checkpoints),
            *self._begin(x, entry, blank),
            self._states(self.out),
            addresses(last),
            self._frame,
            addresses(values),
            strides(values),
        )
        return self._outside([*self.out, *last], tensors[0].dtype)

    @property
    def _frame(self) -> int:
        return self.frames[0] if self.frames else 0

    def backward(
        self,
        tensors: Sequence[Tensor],
        out: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        needs: Sequence[bool],
    ) -> list[Tensor | None]:
        if not self.frames and not self.segments:  # a first backward has written into it
            self.forward(tensors)
            self.out = []
        x, entry, blank, values = self.split(tensors)
        d_out, d_last = self._given(gradients, x)
        d_x = torch.empty_like(x) if self.wants.x else None
        d_entry = [x.new_empty(self.schedule.entries, size) for size in self.sizes]
        d_blank = [x.new_zeros(1, size) for size in self.sizes]
        d_values = self._room(values, needs)
        self.core.backward(
            self.levels,
            self.segments,
            addresses(self.checkpoints),
            *self._begin(x, entry, blank),
            self._states(out),
            self._frame,
            addresses(values),
            strides(values),
            addresses(d_out),
            addresses(d_last),
            0 if d_x is None else d_x.data_ptr(),
            addresses(d_entry),
            addresses(d_blank),
            addresses(d_values),
            shapes(values),
        )
        self._drop()
        return self._returned((d_x, *d_entry, *d_blank, *d_values), tensors)
