"""One unfolding on the compiled machine, and the node that it is in autograd's graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ritornello.executors.levels import core_levels, core_segments
from ritornello.executors.plan import Compiled
from ritornello.executors.program_cell import ProgramCell
from ritornello.executors.reference import ReferenceExecutor
from ritornello.executors.request import Request
from ritornello.structures.schedule import Schedule

try:
    from ritornello import _core
except ImportError:  # installed without a compiler: the executor says so
    _core = None  # type: ignore[assignment]

TYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16", torch.float16: "float32"}


def addresses(tensors: Sequence[Tensor | None]) -> list[int]:
    """Where the tensors' elements lie; 0 for none."""
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def strides(values: Sequence[Tensor]) -> list[int]:
    """From row to row and from column to column of each parameter; a vector is one row."""
    found: list[int] = []
    for value in values:
        found += value.stride() if value.dim() == 2 else (0, value.stride(-1) if value.dim() else 0)
    return found


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

    Tensors go in one list: x, the entry states, the blank states, the parameter values of the code.

    With products in bfloat16, whether the tensors are or torch.autocast is on, rows and states are float32 inside.

    Attributes:
        compiled: the code.
        type: of the machine: "float32", "float64", or "bfloat16" for products.
        rows: how many fields of the state are asked for, of all rows.
        out: all rows' states, field by field, where they are kept.
    """

    def __init__(
        self,
        compiled: Compiled,
        schedule: Schedule,
        type: str,
        seed: int = 0,
        kind: Any = tuple,
        rows: int = 1,
        checkpointed: bool = False,
    ) -> None:
        self.compiled, self.schedule, self.seed, self.kind, self.rows = compiled, schedule, seed, kind, rows
        self.type, self._inside = type, inside(type)
        self.sizes = compiled.code.state_sizes
        self.levels = core_levels(schedule)
        self.segments = core_segments(schedule) if checkpointed and schedule.levels else []
        self._on_chains = all(isinstance(level.source, int) for level in schedule.levels[:1])
        self.out: list[Tensor | None] = []
        self.memory: Any = None
        self.frame = 0
        self.checkpoints: list[Tensor] = []

    def split(self, tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
        """x, entry, blank, parameter values: laid out for the machine."""
        fields = len(self.sizes)
        states = [self._within(tensor) for tensor in tensors[: 1 + 2 * fields]]
        values = [v if v.dtype == self._inside else v.to(self._inside) for v in tensors[1 + 2 * fields :]]
        return states[0], states[1 : 1 + fields], states[1 + fields :], values

    def _within(self, tensor: Tensor) -> Tensor:
        if tensor.dtype == self._inside and tensor.is_contiguous():
            return tensor  # as it mostly is: a call of torch that changes nothing takes a microsecond
        return tensor.to(self._inside).contiguous()

    def forward(self, tensors: Sequence[Tensor], out: Sequence[Tensor] = (), frame: int = 0) -> list[Tensor]:
        """The asked-for fields of all rows, then the final states, in the order of entries.

        Args:
            tensors: as above.
            out: memory for all rows' states, if it is given from outside.
            frame: address of the memory for what is kept for the backward pass, if it is given from outside.
        """
        x, entry, blank, values = self.split(tensors)
        gradients = self.compiled.wants.gradients
        keep_all = (gradients or not self._on_chains) and not self.segments
        self.out = list(out) or [
            x.new_empty(self.schedule.rows, size) if keep_all or field < self.rows else None
            for field, size in enumerate(self.sizes)
        ]
        last = [x.new_empty(self.schedule.entries, size) for size in self.sizes]
        core = self.compiled.core
        count = (max(0, len(self.segments) - 1), self.schedule.entries)
        self.checkpoints = [x.new_empty(*count, size) for size in self.sizes] if self.segments else []
        if gradients and not frame and not self.segments:
            self.memory = _core.Memory(core.frame_stride * self.schedule.rows * x.itemsize)
            frame = self.memory.address
        self.frame = frame
        core.forward(
            self.levels,
            self.segments,
            addresses(self.checkpoints),
            self.type,
            torch.get_num_threads(),
            self.seed,
            x.data_ptr(),
            addresses(entry),
            addresses(blank),
            addresses(self.out),
            addresses(last),
            frame,
            addresses(values),
            strides(values),
        )
        found = [*self.out[: self.rows], *last]
        if x.dtype == tensors[0].dtype:
            return found  # type: ignore[return-value]
        return [field.to(tensors[0].dtype) for field in found]  # type: ignore[union-attr]

    def backward(
        self,
        tensors: Sequence[Tensor],
        out: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        needs: Sequence[bool],
    ) -> list[Tensor | None]:
        """The gradients of the tensors, from those of what `forward` returned."""
        if not self.frame and not self.segments:  # a first backward has written into it
            self.forward(tensors)
        x, entry, blank, values = self.split(tensors)
        fields = len(self.sizes)
        given = _padded(gradients[: self.rows], fields)
        kept = _padded(out, fields)
        d_out = [
            None if not asked else (x.new_zeros(self.schedule.rows, size) if g is None else self._within(g))
            for asked, g, size in zip(self.compiled.wants.douts, given, self.sizes, strict=True)
        ]
        d_last = [None if g is None else self._within(g) for g in gradients[self.rows :]]
        d_x = torch.empty_like(x) if self.compiled.wants.x else None
        d_entry = [x.new_empty(self.schedule.entries, size) for size in self.sizes]
        d_blank = [x.new_zeros(1, size) for size in self.sizes]
        wanted = needs[len(needs) - len(values) :]
        d_values = [
            torch.empty_like(v, memory_format=torch.contiguous_format) if need else None
            for v, need in zip(values, wanted, strict=True)
        ]
        self.compiled.core.backward(
            self.levels,
            self.segments,
            addresses(self.checkpoints),
            self.type,
            torch.get_num_threads(),
            self.seed,
            x.data_ptr(),
            addresses(entry),
            addresses(blank),
            addresses(kept),
            self.frame,
            addresses(values),
            strides(values),
            addresses(d_out),
            addresses(d_last),
            0 if d_x is None else d_x.data_ptr(),
            addresses(d_entry),
            addresses(d_blank),
            addresses(d_values),
            [n for v in values for n in (v.shape if v.dim() == 2 else (1, v.numel()))],
        )
        self.memory, self.frame = None, 0
        found = (d_x, *d_entry, *d_blank, *d_values)
        return [
            d if d is None or d.dtype == tensor.dtype else d.to(tensor.dtype)
            for d, tensor in zip(found, tensors, strict=True)
        ]

    def again(
        self, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None], needs: Sequence[bool]
    ) -> list[Tensor | None]:
        """Gradients that can be differentiated: the program once more, in torch."""
        fields = len(self.sizes)
        entry, blank = self.kind(*tensors[1 : 1 + fields]), self.kind(*tensors[1 + fields : 1 + 2 * fields])
        values = dict(zip(self.compiled.code.parameters, tensors[1 + 2 * fields :], strict=True))
        cell: Any = ProgramCell(self.compiled.code.program, self.kind, values, self.seed)
        request = Request(cell, tensors[0], entry, blank, self.schedule, self.rows > 1)
        result = ReferenceExecutor().run(request)
        order = self.schedule.entry
        last = result.last if order is None else [field[order] for field in result.last]
        pairs = [
            (y, g) for y, g in zip((*result.rows, *last), gradients, strict=True) if g is not None and y.requires_grad
        ]
        wanted = [tensor for tensor, need in zip(tensors, needs, strict=True) if need]
        if not pairs:
            return [None] * len(tensors)
        ys, gs = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(ys, wanted, gs, create_graph=True, allow_unused=True))
        return [next(found) if need else None for need in needs]


def _padded(tensors: Sequence[Tensor | None], length: int) -> list[Tensor | None]:
    return [*tensors, *[None] * (length - len(tensors))]


class Unfolding(torch.autograd.Function):
    """A run as a node of autograd's graph."""

    @staticmethod
    def forward(ctx: Any, run: Run, *tensors: Tensor) -> tuple[Tensor, ...]:
        found = run.forward(tensors)
        ctx.run = run
        ctx.save_for_backward(*tensors, *(field for field in run.out if field is not None))
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
