"""What runs on the compiled machine have in common, and the node that a run is in autograd's graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ritornello.executors.plan import Compiled
from ritornello.executors.program_cell import ProgramCell
from ritornello.executors.reference import ReferenceExecutor
from ritornello.executors.request import Request
from ritornello.structures.schedule import Schedule

try:
    from ritornello import _core as _core  # which the executor, chains and trees have from here
except ImportError:  # installed without a compiler: the executor says so
    _core = None  # type: ignore[assignment]

TYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16", torch.float16: "float32"}
LINE = 64  # bytes of a cache line
Started = tuple[str, int, int, int, list[int], list[int]]


def addresses(tensors: Sequence[Tensor | None]) -> list[int]:
    """Where the tensors' elements lie; 0 for none."""
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def strides(values: Sequence[Tensor]) -> list[int]:
    """From row to row and from column to column of each parameter; a vector is one row."""
    found: list[int] = []
    for value in values:
        found += value.stride() if value.dim() == 2 else (0, value.stride(-1) if value.dim() else 0)
    return found


def shapes(values: Sequence[Tensor]) -> list[int]:
    """Rows and columns of each parameter; a vector is one row."""
    return [n for value in values for n in (value.shape if value.dim() == 2 else (1, value.numel()))]


def machine_type(x: Tensor) -> str:
    """The type to run in: x's; under torch.autocast float32 with products in bfloat16."""
    if x.dtype == torch.float32 and torch.is_autocast_enabled("cpu"):
        return "bfloat16"
    return TYPES[x.dtype]


def inside(type: str) -> torch.dtype:
    """The dtype of rows and states within the machine."""
    return torch.float64 if type == "float64" else torch.float32


class Run:
    """One unfolding, forward and perhaps backward.

    Tensors go in one list: x, the entry states, the blank states, the parameter values of the code, or of one code
    after the other where rows are of several kinds.

    With products in bfloat16, whether the tensors are or torch.autocast is on, rows and states are float32 inside.

    Attributes:
        compiled: the code of each kind of rows.
        wants: what is asked of them.
        type: of the machine: "float32", "float64", or "bfloat16" for products.
        kind: the type of the state.
        rows: how many fields of the state are asked for, of all rows.
        out: those fields of all rows' states.
        memory: what nobody but the run reads, in one piece: `frames`, for the backward pass, and `hidden`, the other
            fields of all rows' states. Both are addresses. It is used again by later runs, where fresh pages from the
            system would cost more than what is done in them.
    """

    def __init__(
        self,
        compiled: Sequence[Compiled],
        schedule: Schedule,
        type: str,
        seed: int = 0,
        kind: Any = tuple,
        rows: int = 1,
    ) -> None:
        self.compiled, self.schedule, self.seed, self.kind, self.rows = compiled, schedule, seed, kind, rows
        self.type, self._inside = type, inside(type)
        self.wants, self.sizes = compiled[0].wants, compiled[0].code.state_sizes
        self.out: list[Tensor] = []
        self.memory: Any = None
        self.frames: list[int] = []
        self.hidden: list[int] = []

    def forward(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The asked-for fields of all rows, then the final states, in the order of entries."""
        raise NotImplementedError

    def backward(
        self,
        tensors: Sequence[Tensor],
        out: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        needs: Sequence[bool],
    ) -> list[Tensor | None]:
        """The gradients of the tensors, from those of what `forward` returned."""
        raise NotImplementedError

    def split(self, tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
        """x, entry, blank, parameter values: laid out for the machine."""
        fields = len(self.sizes)
        states = [self._within(tensor) for tensor in tensors[: 1 + 2 * fields]]
        values = [self._plain(tensor) for tensor in tensors[1 + 2 * fields :]]
        return states[0], states[1 : 1 + fields], states[1 + fields :], values

    def _within(self, tensor: Tensor) -> Tensor:
        tensor = self._plain(tensor)
        return tensor if tensor.is_contiguous() else tensor.contiguous()

    def _plain(self, tensor: Tensor) -> Tensor:
        """With the numbers in memory as they are: torch keeps some, such as `z.conj().imag`, with the other sign."""
        if tensor.dtype == self._inside and not tensor.is_neg():
            return tensor  # as it mostly is: a call of torch that changes nothing takes a microsecond
        return tensor.to(self._inside).resolve_neg()

    def _begin(self, x: Tensor, entry: Sequence[Tensor], blank: Sequence[Tensor]) -> Started:
        """What the machine is told first of every run."""
        threads = torch.get_num_threads()
        return self.type, threads, self.seed, x.data_ptr(), addresses(entry), addresses(blank)

    def _given(
        self, gradients: Sequence[Tensor | None], like: Tensor
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Gradients of the rows, field by field, and of the final states."""
        of_rows = [*gradients[: self.rows], *[None] * (len(self.sizes) - self.rows)]
        d_out = [
            None
            if not asked
            else (like.new_zeros(self.schedule.rows, size) if gradient is None else self._within(gradient))
            for asked, gradient, size in zip(self.wants.douts, of_rows, self.sizes, strict=True)
        ]
        return d_out, [None if gradient is None else self._within(gradient) for gradient in gradients[self.rows :]]

    def _take(self, frames: Sequence[int], states: bool) -> None:
        """Memory for frames of so many elements and, if all rows' states are kept, for those that nobody asked for."""
        hidden = [size * self.schedule.rows for size in self.sizes[self.rows :]] if states else []
        lines = [-(-count * self._inside.itemsize // LINE) * LINE for count in (*frames, *hidden)]
        if lines:
            self.memory = _core.Memory(sum(lines))
            places = list(accumulate(lines, initial=self.memory.address))
            self.frames, self.hidden = places[: len(frames)], places[len(frames) : -1]

    def _drop(self) -> None:
        """Lets go of it: a backward pass has written into the frames."""
        self.memory, self.frames, self.hidden = None, [], []

    def _states(self, out: Sequence[Tensor]) -> list[int]:
        """Where each field of all rows' states lies; 0 where it is not kept."""
        found = [*addresses(out), *self.hidden]
        return found + [0] * (len(self.sizes) - len(found))

    @staticmethod
    def _room(values: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
        """Memory for the gradients of those parameter values, the last of all tensors, that need one."""
        wanted = needs[len(needs) - len(values) :]
        return [
            torch.empty_like(value, memory_format=torch.contiguous_format) if need else None
            for value, need in zip(values, wanted, strict=True)
        ]

    @staticmethod
    def _outside(fields: list[Any], dtype: torch.dtype) -> list[Tensor]:
        """Rows and states in the dtype of x."""
        return fields if fields[0].dtype == dtype else [field.to(dtype) for field in fields]

    @staticmethod
    def _returned(found: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor | None]:
        """In the dtypes of the tensors that they belong to."""
        return [
            tensor if tensor is None or tensor.dtype == given.dtype else tensor.to(given.dtype)
            for tensor, given in zip(found, like, strict=True)
        ]

    def again(
        self,
        tensors: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        needs: Sequence[bool],
        with_graph: bool = True,
    ) -> list[Tensor | None]:
        """Gradients that can be differentiated, or batched: the programs once more, in torch."""
        tensors = [tensor.view_as(tensor) for tensor in tensors]  # apart, though they may hang on one another outside
        fields = len(self.sizes)
        entry, blank = self.kind(*tensors[1 : 1 + fields]), self.kind(*tensors[1 + fields : 1 + 2 * fields])
        values = iter(tensors[1 + 2 * fields :])
        cell: Any = self._walked([self._cell(each, values) for each in self.compiled])
        result = ReferenceExecutor().run(Request(cell, tensors[0], entry, blank, self.schedule, self.rows > 1))
        order = self.schedule.entry
        last = result.last if order is None else [field[order] for field in result.last]
        pairs = [
            (y, g) for y, g in zip((*result.rows, *last), gradients, strict=True) if g is not None and y.requires_grad
        ]
        wanted = [tensor for tensor, need in zip(tensors, needs, strict=True) if need]
        if not pairs:
            return [None] * len(tensors)
        ys, gs = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(ys, wanted, gs, create_graph=with_graph, allow_unused=True))
        return [next(found) if need else None for need in needs]

    def _cell(self, compiled: Compiled, values: Iterator[Tensor]) -> ProgramCell:
        named = {value: next(values) for value in compiled.code.parameters}
        return ProgramCell(compiled.code.program, self.kind, named, self.seed)

    def _walked(self, cells: Sequence[ProgramCell]) -> Any:
        """One cell, called level by level, that is the cell of each level's kind."""
        return cells[0]


class Unfolding(torch.autograd.Function):
    """A run as a node of autograd's graph."""

    @staticmethod
    def forward(ctx: Any, run: Run, *tensors: Tensor) -> tuple[Tensor, ...]:
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
        if any(g is not None and torch._C._functorch.is_legacy_batchedtensor(g) for g in gradients):  # no addresses
            with torch.enable_grad():
                apart = [t.detach().requires_grad_(need) for t, need in zip(tensors, needs, strict=True)]
                return (None, *ctx.run.again(apart, gradients, needs, with_graph=False))
        return (None, *ctx.run.backward(tensors, out, gradients, needs))
