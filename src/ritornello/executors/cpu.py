"""The cpu executor: traces a cell, lowers its program, and runs it on the compiled machine."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ritornello.executors.levels import core_levels
from ritornello.executors.plan import Compiled, Plan, make_plan
from ritornello.executors.program_cell import ProgramCell
from ritornello.executors.reference import ReferenceExecutor
from ritornello.executors.request import Request, Result
from ritornello.program import Untraceable, Wants
from ritornello.structures.schedule import Schedule

try:
    from ritornello import _core
except ImportError:  # installed without a compiler
    _core = None  # type: ignore[assignment]

_log = logging.getLogger("ritornello")
TYPES = {torch.float32: "float32", torch.float64: "float64"}
MISSING = (
    "the compiled extension is not installed; "
    "install ritornello from a wheel, or from source where there is a C++ compiler"
)


class CpuExecutor:
    """Any traceable cell over chains, at the speed of a kernel written for it."""

    name = "cpu"

    def __init__(self) -> None:
        self._plans: WeakKeyDictionary[nn.Module, OrderedDict[Any, Plan | str]] = WeakKeyDictionary()

    def supports(self, request: Request) -> str | None:
        if _core is None:
            return MISSING
        x = request.x
        if x.device.type != "cpu":
            return f"x is on {x.device}; this executor runs on the CPU"
        if x.dtype not in TYPES:
            return f"x has dtype {x.dtype}; this executor knows {', '.join(TYPES.values())}"
        if any(not isinstance(level.source, int) and level.source.shape[1] != 1 for level in request.schedule.levels):
            return "rows with several predecessors are not built yet"
        if torch._C._are_functorch_transforms_active():
            return "it is under a torch.func transformation"
        if torch.is_autocast_enabled("cpu"):
            return "torch.autocast is on"
        plan = self._plan(request)
        return plan if isinstance(plan, str) else None

    def run(self, request: Request) -> Result:
        plan = self._plan(request)
        assert isinstance(plan, Plan), plan
        schedule, fields = request.schedule, len(request.entry)
        rows = fields if request.every_field else 1
        states = [request.x, *request.entry, *request.blank]
        compiled = plan.compiled(Wants(False, False, (False,) * fields))
        if torch.is_grad_enabled():
            asked = any(tensor.requires_grad for tensor in states) or any(
                p.requires_grad for p in request.cell.parameters()
            )
            if asked:
                douts = tuple(field < rows for field in range(fields))
                compiled = plan.compiled(Wants(True, request.x.requires_grad, douts))
        values = compiled.parameter_values(request.cell, request.x.dtype)
        run = Run(compiled, schedule, plan.seed(), type(request.entry), rows)
        if compiled.wants.gradients:
            found = _Unfolding.apply(run, *states, *values)
        else:
            found = run.forward([*states, *values])
        last = found[rows:]
        if schedule.entry is not None:
            back = schedule.entry.argsort()
            last = [field[back] for field in last]
        return Result(tuple(found[:rows]), type(request.entry)(*last))

    def _plan(self, request: Request) -> Plan | str:
        """The cell's plan, or the reason why it has none; made anew when a setting of the cell changes."""
        cell = request.cell
        known = self._plans.setdefault(cell, OrderedDict())
        key = (fingerprint(cell), request.x.shape[-1], request.x.dtype, tuple(f.shape[-1] for f in request.entry))
        if key not in known:
            sizes = [field.shape[-1] for field in request.entry]
            try:
                known[key] = make_plan(cell, request.x.shape[-1], sizes, request.x)
            except Untraceable as reason:
                known[key] = f"{type(cell).__name__} cannot be compiled: {reason}"
                _log.warning("%s; it runs on the reference executor.", known[key])
            if len(known) > 16:
                known.popitem(last=False)
        return known[key]


def fingerprint(cell: nn.Module) -> tuple[Any, ...]:
    """All settings that the cell's modules hold besides tensors: what its forward may branch on."""
    found: list[Any] = []
    for module in cell.modules():
        for name, value in vars(module).items():
            kind = type(value)
            if kind in (bool, int, float, str, type(None), tuple):
                found.append(value)
            elif name in ("_forward_hooks", "_forward_pre_hooks"):
                found.append(len(value))
            elif kind not in (dict, OrderedDict, set, list):
                found.append(id(value))
    return tuple(found)


def _addresses(tensors: Sequence[Tensor | None]) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def _strides(values: Sequence[Tensor]) -> list[int]:
    """From row to row and from column to column of each parameter; a vector is one row."""
    found: list[int] = []
    for value in values:
        found += value.stride() if value.dim() == 2 else (0, value.stride(-1) if value.dim() else 0)
    return found


class Run:
    """One unfolding, forward and perhaps backward.

    Tensors go in one list: x, the entry states, the blank states, the parameter values of the code.

    Attributes:
        compiled: the code.
        rows: how many fields of the state are asked for, of all rows.
        out: all rows' states, field by field, where they are kept.
    """

    def __init__(self, compiled: Compiled, schedule: Schedule, seed: int, kind: Any, rows: int) -> None:
        self.compiled, self.schedule, self.seed, self.kind, self.rows = compiled, schedule, seed, kind, rows
        self.sizes = compiled.code.state_sizes
        self.levels = core_levels(schedule)
        self._on_chains = all(isinstance(level.source, int) for level in schedule.levels[:1])
        self.out: list[Tensor | None] = []

    def split(self, tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
        """x, entry, blank, parameter values: laid out for the machine."""
        fields = len(self.sizes)
        states = [tensor.detach().contiguous() for tensor in tensors[: 1 + 2 * fields]]
        values = [tensor.detach() for tensor in tensors[1 + 2 * fields :]]
        return states[0], states[1 : 1 + fields], states[1 + fields :], values

    def forward(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The asked-for fields of all rows, then the final states, in the order of entries."""
        x, entry, blank, values = self.split(tensors)
        gradients = self.compiled.wants.gradients
        keep_all = gradients or not self._on_chains
        self.out = [
            x.new_empty(self.schedule.rows, size) if keep_all or field < self.rows else None
            for field, size in enumerate(self.sizes)
        ]
        last = [x.new_empty(self.schedule.entries, size) for size in self.sizes]
        core = self.compiled.core
        self.frame = _core.Memory(core.frame_stride * self.schedule.rows * x.itemsize) if gradients else None
        core.forward(
            self.levels,
            TYPES[x.dtype],
            torch.get_num_threads(),
            self.seed,
            x.data_ptr(),
            _addresses(entry),
            _addresses(blank),
            _addresses(self.out),
            _addresses(last),
            0 if self.frame is None else self.frame.address,
            _addresses(values),
            _strides(values),
        )
        return [*self.out[: self.rows], *last]  # type: ignore[list-item]

    def backward(
        self,
        tensors: Sequence[Tensor],
        out: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        needs: Sequence[bool],
    ) -> list[Tensor | None]:
        """The gradients of the tensors, from those of what `forward` returned."""
        if self.frame is None:  # a first backward has written into it
            self.forward(tensors)
        assert self.frame is not None
        x, entry, blank, values = self.split(tensors)
        d_out = [
            None if not asked else (torch.zeros_like(rows) if g is None else g.contiguous())
            for asked, g, rows in zip(
                self.compiled.wants.douts, _padded(gradients[: self.rows], len(out)), out, strict=True
            )
        ]
        d_last = [None if g is None else g.contiguous() for g in gradients[self.rows :]]
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
            TYPES[x.dtype],
            torch.get_num_threads(),
            self.seed,
            x.data_ptr(),
            _addresses(entry),
            _addresses(blank),
            _addresses(out),
            self.frame.address,
            _addresses(values),
            _strides(values),
            _addresses(d_out),
            _addresses(d_last),
            0 if d_x is None else d_x.data_ptr(),
            _addresses(d_entry),
            _addresses(d_blank),
            _addresses(d_values),
            [n for v in values for n in (v.shape if v.dim() == 2 else (1, v.numel()))],
        )
        self.frame = None
        return [d_x, *d_entry, *d_blank, *d_values]

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


def _padded(gradients: Sequence[Tensor | None], length: int) -> list[Tensor | None]:
    return [*gradients, *[None] * (length - len(gradients))]


class _Unfolding(torch.autograd.Function):
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
        return (None, *ctx.run.backward(tensors, out, gradients, needs))
