"""Trees on the compiled machine: rows of a level are of one kind, and each kind has code of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ritornello.executors.plan import Compiled, Kind
from ritornello.executors.program_cell import ProgramCell
from ritornello.executors.run import Run, _core, addresses, shapes, strides
from ritornello.structures import Schedule


class Layout:
    """A schedule as the machine walks it.

    Args:
        schedule: of trees.
        bare: whether leaves read no state.

    Attributes:
        kinds: of its rows.
        of_level: the number of each level's kind.
        rows: how many there are of each kind.
        core: the levels in the machine.
    """

    def __init__(self, schedule: Schedule, bare: bool) -> None:
        numbers: dict[Kind, int] = {}
        self.of_level: list[int] = []
        self.rows: list[int] = []
        levels: list[int] = []
        sources: list[Tensor] = []
        begin, end, _ = schedule.inputs or (0, schedule.rows, None)
        at = 0
        for start, stop, source in schedule.levels:
            assert isinstance(source, Tensor), "trees have a source for each row"
            has_input = begin <= start and stop <= end
            kind = Kind(0 if bare and stop <= schedule.leaves else source.shape[1], has_input)
            number = numbers.setdefault(kind, len(numbers))
            if number == len(self.rows):
                self.rows.append(0)
            levels += [start, stop - start, at, self.rows[number], start - begin if has_input else -1, number]
            self.of_level.append(number)
            self.rows[number] += stop - start
            if kind.slots:
                sources.append(source.flatten())
                at += source.numel()
        self.kinds = list(numbers)
        all_sources = torch.cat(sources) if sources else torch.zeros(0, dtype=torch.long, device="cpu")
        assert schedule.last is not None
        last, owner = schedule.last.contiguous(), _owners(schedule)
        slots = [kind.slots for kind in self.kinds]
        where = (all_sources.data_ptr(), len(all_sources), last.data_ptr(), owner.data_ptr(), schedule.rows)
        self.core = _core.Forest(schedule.entries, levels, *where, slots)


def _owners(schedule: Schedule) -> Tensor:
    """(rows,) the entry that each row belongs to: that of its first predecessor."""
    first = schedule.first_row
    owner = torch.arange(
        -1, first + schedule.rows - 1, device="cpu"
    )  # right for the entries, written over for the rows
    for start, stop, source in schedule.levels:
        owner[first + start : first + stop] = owner[source].amax(1)
    return owner[first:]


class TreeRun(Run):
    """A run over trees."""

    def __init__(self, compiled: Sequence[Compiled], layout: Layout, schedule: Schedule, *rest: Any) -> None:
        super().__init__(compiled, schedule, *rest)
        self.layout = layout

    def forward(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        x, entry, blank, values = self.split(tensors)
        self.out = [x.new_empty(self.schedule.rows, size) for size in self.sizes[: self.rows]]
        last = [x.new_empty(self.schedule.entries, size) for size in self.sizes]
        pairs = zip(self.compiled, self.layout.rows, strict=True)
        self._take([each.core.frame_stride * rows for each, rows in pairs] if self.wants.gradients else [], states=True)
        of_kind = self._by_kind(values)
        self.layout.core.forward(
            [each.core for each in self.compiled],
            *self._begin(x, entry, blank),
            self._states(self.out),
            addresses(last),
            self.frames or [0] * len(self.compiled),
            [addresses(each) for each in of_kind],
            [strides(each) for each in of_kind],
        )
        return self._outside([*self.out, *last], tensors[0].dtype)

    def _by_kind(self, values: Sequence[Any]) -> list[list[Any]]:
        remaining = iter(values)
        return [[next(remaining) for _ in each.code.parameters] for each in self.compiled]

    def backward(
        self,
        tensors: Sequence[Tensor],
        out: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        needs: Sequence[bool],
    ) -> list[Tensor | None]:
        if not self.frames:  # a first backward has written into it
            self.forward(tensors)
            self.out = []
        x, entry, blank, values = self.split(tensors)
        d_out, d_last = self._given(gradients, x)
        d_x = torch.empty_like(x) if any(each.wants.x for each in self.compiled) else None
        d_entry, d_blank = ([torch.empty_like(field) for field in state] for state in (entry, blank))
        d_values = self._room(values, needs)
        of_kind = self._by_kind(values)
        self.layout.core.backward(
            [each.core for each in self.compiled],
            *self._begin(x, entry, blank),
            self._states(out),
            self.frames,
            [addresses(each) for each in of_kind],
            [strides(each) for each in of_kind],
            addresses(d_out),
            addresses(d_last),
            0 if d_x is None else d_x.data_ptr(),
            addresses(d_entry),
            addresses(d_blank),
            [addresses(each) for each in self._by_kind(d_values)],
            [shapes(each) for each in of_kind],
        )
        self._drop()
        return self._returned((d_x, *d_entry, *d_blank, *d_values), tensors)

    def _walked(self, cells: Sequence[ProgramCell]) -> Any:
        return _Walk(cells, self.layout.of_level)


class _Walk:
    """Called once a level, in order, it is the cell of that level's kind."""

    def __init__(self, cells: Sequence[ProgramCell], of_level: Sequence[int]) -> None:
        self.cells, self.left, self.row = cells, iter(of_level), 0

    def __call__(self, x: Tensor, state: Any) -> Any:
        cell = self.cells[next(self.left)]
        cell.first_row = self.row
        self.row += len(x)
        return cell(x, state)
