"""The cpu executor: traces a cell, lowers its program, and runs it on the compiled machine."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ritornello.cells.adapt import name_of
from ritornello.executors.fingerprint import fingerprint
from ritornello.executors.plan import Plan, make_plan
from ritornello.executors.request import Request, Result
from ritornello.executors.run import TYPES, Run, Unfolding, machine_type
from ritornello.program import Untraceable, Wants

try:
    from ritornello import _core
except ImportError:  # installed without a compiler
    _core = None  # type: ignore[assignment]

_log = logging.getLogger("ritornello")
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
        if any(not isinstance(level.source, int) and level.source.shape[1] != 1 for level in request.schedule.levels):
            return "rows with several predecessors are not built yet"
        if torch._C._are_functorch_transforms_active():
            return "it is under a torch.func transformation"
        if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") != torch.bfloat16:
            return f"torch.autocast asks for {torch.get_autocast_dtype('cpu')}"
        sizes = tuple(field.shape[-1] for field in request.entry)
        plan = self.plan_or_reason(request.cell, request.x.shape[-1], sizes, request.x)
        return plan if isinstance(plan, str) else None

    def plan_or_reason(self, cell: Any, x_size: int, sizes: tuple[int, ...], like: Tensor) -> Plan | str:
        """As `plan`; where dtype, device or installation stand against it, that is the reason."""
        if _core is None:
            return MISSING
        if like.device.type != "cpu":
            return f"x is on {like.device}; this executor runs on the CPU"
        if like.dtype not in TYPES:
            return f"x has dtype {like.dtype}; this executor knows {', '.join(TYPES.values())}"
        return self.plan(cell, x_size, sizes, like)

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
        kind, checkpointed = type(request.entry), request.adjoint == "checkpointed" and compiled.wants.gradients
        run = Run(compiled, schedule, machine_type(request.x), plan.seed(), kind, rows, checkpointed)
        if compiled.wants.gradients:
            found = Unfolding.apply(run, *states, *values)
        else:
            found = run.forward([*states, *values])
        last = found[rows:]
        if schedule.entry is not None:
            back = schedule.entry.argsort()
            last = [field[back] for field in last]
        return Result(tuple(found[:rows]), type(request.entry)(*last))

    def _plan(self, request: Request) -> Plan | str:
        sizes = tuple(field.shape[-1] for field in request.entry)
        return self.plan(request.cell, request.x.shape[-1], sizes, request.x)

    def plan(self, cell: Any, x_size: int, sizes: tuple[int, ...], like: Tensor) -> Plan | str:
        """The cell's plan, or the reason why it has none; made anew when a setting of the cell changes.

        Args:
            x_size, sizes: features of x and of each field of the state.
            like: a tensor of the dtype and device to run with.
        """
        known = self._plans.setdefault(cell, OrderedDict())
        key = (fingerprint(cell), x_size, like.dtype, sizes)
        if key not in known:
            try:
                known[key] = make_plan(cell, x_size, sizes, like)
            except Untraceable as reason:
                known[key] = f"{name_of(cell)} cannot be compiled: {reason}"
                _log.warning("%s; it runs on the reference executor.", known[key])
            if len(known) > 16:
                known.popitem(last=False)
        return known[key]
