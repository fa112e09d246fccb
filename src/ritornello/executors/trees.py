"""One walk over trees on the compiled machine: rows of a level are of one kind, and each kind has code of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ritornello.executors.plan import Compiled, Plan
from ritornello.executors.program_cell import ProgramCell
from ritornello.executors.reference import ReferenceExecutor
from ritornello.executors.request import Request
from ritornello.executors.run import addresses, inside, strides
from ritornello.structures.schedule import Schedule

try:
    from ritornello import _core
except ImportError:  # installed without a compiler: the executor says so
    _core = None  # type: ignore[assignment]


class Kind(NamedTuple):
    """What rows of one kind have.

    Attributes:
        slots: predecessors.
        stateless: whether these are initial states that are zero.
    """

    slots: int
    stateless: bool


class Layout:
    """A schedule as the machine walks it.

    Attributes:
        kinds: of its rows.
        of_level: the number of each level's kind.
        rows: how many there are of each kind.
        core: the levels in the machine.
    """

    def __init__(self, schedule: Schedule, blank_is_zero: bool) -> None:
        numbers: dict[Kind, int] = {}
        self.of_level: list[int] = []
        self.rows: list[int] = []
        levels: list[int] = []
        sources: list[Tensor] = []
        at = 0
        for start, stop, source in schedule.levels:
            if isinstance(source, int):
                source = torch.arange(source, source + stop - start, device="cpu")[:, None]
            leaves = blank_is_zero and stop > start and int(source.max()) < schedule.first_row
            kind = numbers.setdefault(Kind(source.shape[1], leaves), len(numbers))
            if kind == len(self.rows):
                self.rows.append(0)
            levels += [start, stop - start, at, self.rows[kind], start, kind]
            sources.append(source.flatten())
            self.of_level.append(kind)
            self.rows[kind] += stop - start
            at += source.numel()
        self.kinds = list(numbers)
        source = torch.cat(sources) if sources else torch.zeros(0, dtype=torch.long, device="cpu")
        last, owner = _last(schedule), _owners(schedule, sources)
        slots = [kind.slots for kind in self.kinds]
        where = (source.data_ptr(), len(source), last.data_ptr(), owner.data_ptr(), schedule.rows)
        self.core = _core.Forest(schedule.entries, levels, *where, slots)


def _last(schedule: Schedule) -> Tensor:
    if schedule.last is not None:
        return schedule.last.contiguous()
    return torch.arange(schedule.entries, device="cpu") + schedule.first_row + schedule.rows - schedule.entries


def _owners(schedule: Schedule, sources: Sequence[Tensor]) -> Tensor:
    """(rows,) the entry that each row belongs to: that of its first predecessor."""
    owner = torch.cat([
        torch.arange(-1, schedule.entries, device="cpu"), torch.zeros(schedule.rows, dtype=torch.long, device="cpu")
    ])  # fmt: skip
    for (start, stop, _), source in zip(schedule.levels, sources, strict=True):
        first = schedule.first_row
        owner[first + start : first + stop] = owner[source.view(stop - start, -1)].amax(1)
    return owner[schedule.first_row :]


class TreeRun:
    """One walk, forward and perhaps backward.

    Tensors go in one list: x, the entry states, the blank states, then the parameter values of each kind's code.

    Attributes:
        rows: how many fields of the state are asked for, of all rows.
        out: all rows' states, field by field.
    """

    def __init__(
        self,
        compiled: Sequence[Compiled],
        layout: Layout,
        schedule: Schedule,
        type: str,
        seed: int,
        kind: Any,
        rows: int,
    ) -> None:
        self.compiled, self.layout, self.schedule = compiled, layout, schedule
        self.type, self._inside, self.seed, self.kind, self.rows = type, inside(type), seed, kind, rows
        self.sizes = compiled[0].code.state_sizes
        self.counts = [len(each.code.parameters) for each in compiled]
        self.out: list[Tensor] = []
        self.memory: list[Any] = []

    def split(self, tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor], list[list[Tensor]]]:
        """x, entry, blank, each kind's parameter values: laid out for the machine."""
        fields = len(self.sizes)
        states = [tensor.to(self._inside).contiguous() for tensor in tensors[: 1 + 2 * fields]]
        values = iter(v.to(self._inside) for v in tensors[1 + 2 * fields :])
        of_kind = [[next(values) for _ in range(count)] for count in self.counts]
        return states[0], states[1 : 1 + fields], states[1 + fields :], of_kind

    def forward(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The asked-for fields of all rows, then the roots' states."""
        x, entry, blank, values = self.split(tensors)
        self.out = [x.new_empty(self.schedule.rows, size) for size in self.sizes]
        last = [x.new_empty(self.schedule.entries, size) for size in self.sizes]
        self.memory = []
        if self.compiled[0].wants.gradients:
            pairs = zip(self.compiled, self.layout.rows, strict=True)
            self.memory = [_core.Memory(each.core.frame_stride * rows * x.itemsize) for each, rows in pairs]
        self.layout.core.forward(
            [each.core for each in self.compiled],
            self.type,
            torch.get_num_threads(),
            self.seed,
            x.data_ptr(),
            addresses(entry),
            addresses(blank),
            addresses(self.out),
            addresses(last),
            self._frames(),
            [addresses(each) for each in values],
            [strides(each) for each in values],
        )
        found = [*self.out[: self.rows], *last]
        return found if x.dtype == tensors[0].dtype else [field.to(tensors[0].dtype) for field in found]

    def _frames(self) -> list[int]:
        return [memory.address for memory in self.memory] or [0] * len(self.compiled)

    def backward(
        self,
        tensors: Sequence[Tensor],
        out: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        needs: Sequence[bool],
    ) -> list[Tensor | None]:
        """The gradients of the tensors, from those of what `forward` returned."""
        if not self.memory:  # a first backward has written into it
            self.forward(tensors)
            self.out = []
        x, entry, blank, values = self.split(tensors)
        wants, fields = self.compiled[0].wants, len(self.sizes)
        given = [*gradients[: self.rows], *[None] * (fields - self.rows)]
        d_out = [
            None if not asked else (x.new_zeros(len(x), size) if g is None else g.to(self._inside).contiguous())
            for asked, g, size in zip(wants.douts, given, self.sizes, strict=True)
        ]
        d_last = [None if g is None else g.to(self._inside).contiguous() for g in gradients[self.rows :]]
        d_x = torch.empty_like(x) if wants.x else None
        d_entry, d_blank = ([torch.empty_like(field) for field in state] for state in (entry, blank))
        wanted = iter(needs[1 + 2 * fields :])
        d_values = [
            [torch.empty_like(v, memory_format=torch.contiguous_format) if next(wanted) else None for v in each]
            for each in values
        ]
        self.layout.core.backward(
            [each.core for each in self.compiled],
            self.type,
            torch.get_num_threads(),
            self.seed,
            x.data_ptr(),
            addresses(entry),
            addresses(blank),
            addresses(out),
            self._frames(),
            [addresses(each) for each in values],
            [strides(each) for each in values],
            addresses(d_out),
            addresses(d_last),
            0 if d_x is None else d_x.data_ptr(),
            addresses(d_entry),
            addresses(d_blank),
            [addresses(each) for each in d_values],
            [[n for v in each for n in (v.shape if v.dim() == 2 else (1, v.numel()))] for each in values],
        )
        self.memory = []
        found = (d_x, *d_entry, *d_blank, *(d for each in d_values for d in each))
        return [
            d if d is None or d.dtype == tensor.dtype else d.to(tensor.dtype)
            for d, tensor in zip(found, tensors, strict=True)
        ]

    def again(
        self, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None], needs: Sequence[bool]
    ) -> list[Tensor | None]:
        """Gradients that can be differentiated: the programs once more, in torch."""
        fields = len(self.sizes)
        entry, blank = self.kind(*tensors[1 : 1 + fields]), self.kind(*tensors[1 + fields : 1 + 2 * fields])
        values = iter(tensors[1 + 2 * fields :])
        cells = []
        for each in self.compiled:
            named = {value: next(values) for value in each.code.parameters}
            cells.append(ProgramCell(each.code.program, self.kind, named, self.seed))
        walk: Any = _Walk(cells, self.layout.of_level)
        result = ReferenceExecutor().run(Request(walk, tensors[0], entry, blank, self.schedule, self.rows > 1))
        pairs = [
            (y, g)
            for y, g in zip((*result.rows, *result.last), gradients, strict=True)
            if g is not None and y.requires_grad
        ]
        wanted = [tensor for tensor, need in zip(tensors, needs, strict=True) if need]
        if not pairs:
            return [None] * len(tensors)
        ys, gs = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(ys, wanted, gs, create_graph=True, allow_unused=True))
        return [next(found) if need else None for need in needs]


class _Walk:
    """Called once a level, in order, it is the cell of that level's kind."""

    def __init__(self, cells: Sequence[ProgramCell], of_level: Sequence[int]) -> None:
        self.cells, self.left, self.row = cells, iter(of_level), 0

    def __call__(self, x: Tensor, state: Any) -> Any:
        cell = self.cells[next(self.left)]
        cell.first_row = self.row
        self.row += len(x)
        return cell(x, state)


class OverTrees(torch.autograd.Function):
    """A walk as a node of autograd's graph."""

    @staticmethod
    def forward(ctx: Any, run: TreeRun, *tensors: Tensor) -> tuple[Tensor, ...]:
        found = run.forward(tensors)
        ctx.run = run
        ctx.save_for_backward(*tensors, *run.out)
        run.out = []
        ctx.set_materialize_grads(False)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        saved, needs = ctx.saved_tensors, ctx.needs_input_grad[1:]
        tensors, out = saved[: len(needs)], saved[len(needs) :]
        if torch.is_grad_enabled():
            return (None, *ctx.run.again(tensors, gradients, needs))
        return (None, *ctx.run.backward(tensors, out, gradients, needs))


def plans_of(plan: Plan, layout: Layout) -> list[Plan]:
    """The plan of each kind of rows.

    Raises:
        CellError: a cell that keeps its predecessors apart.
    """
    return [plan.of_kind(kind.slots, kind.stateless) for kind in layout.kinds]
