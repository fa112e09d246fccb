"""The cpu executor: traces a cell, lowers its program, and runs it on the compiled machine."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ritornello.cells.adapt import name_of
from ritornello.errors import CellError, tell
from ritornello.executors.chains import ChainRun
from ritornello.executors.fingerprint import fingerprint
from ritornello.executors.plan import Plan, make_plan
from ritornello.executors.program_cell import BoundCell
from ritornello.executors.request import Request, Result
from ritornello.executors.run import TYPES, Run, Unfolding, _core, machine_type
from ritornello.executors.trees import Layout, TreeRun
from ritornello.program import MOST_SLOTS, Untraceable, Wants, foreign, lookup, most_predecessors
from ritornello.structures import is_chain

_PROXY = torch._C._TorchDispatchModeKey.PROXY
MISSING = (
    "the compiled extension is not installed; "
    "install ritornello from a wheel, or from source where there is a C++ compiler"
)


def unreadable(like: Tensor) -> str | None:
    """Why the machine cannot compute with such tensors; None where it can."""
    if _core is None:
        return MISSING
    if foreign(like):
        return f"x is a {type(like).__name__}, which computes by its own rules"
    if like.device.type != "cpu":
        return f"x is on {like.device}; this executor runs on the CPU"
    if like.dtype not in TYPES:
        return f"x has dtype {like.dtype}; this executor knows {', '.join(str(dtype)[6:] for dtype in TYPES)}"
    return None


def unfit(x: Tensor) -> str | None:
    """Why the machine cannot take x as torch is set now; None where it can."""
    if torch._C._are_functorch_transforms_active():
        return "it is under a torch.func transformation"
    if forward_ad._current_level >= 0:
        return "it is under forward-mode differentiation"
    if not torch.compiler.is_compiling():
        if torch._C._get_dispatch_mode(_PROXY) is not None:
            return "torch.fx records what is called"
        if nn.modules.module._has_any_global_hook():
            return "a hook on all modules is to be called at each step"
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return f"torch.autocast asks for {torch.get_autocast_dtype('cpu')}"
    return unreadable(x)


class CpuExecutor:
    """Any traceable cell over chains and trees, at the speed of a kernel written for it."""

    name = "cpu"

    def __init__(self) -> None:
        self._plans: WeakKeyDictionary[nn.Module, _Plans] = WeakKeyDictionary()

    def supports(self, request: Request) -> str | None:
        reason = unfit(request.x)
        if reason is not None:
            return reason
        bound = request.cell.parameters() if isinstance(request.cell, BoundCell) else ()
        for tensor in (*request.entry, *request.blank, *bound):
            if foreign(tensor):
                return f"a state or a parameter is a {type(tensor).__name__}, which computes by its own rules"
        sizes = tuple(field.shape[-1] for field in request.entry)
        plan = request.found[self.name] = self.plan(request.cell, request.x.shape[-1], sizes, request.x)
        if isinstance(plan, str):
            return plan
        return None if is_chain(request.schedule) else self._supports_trees(request, plan)

    def _supports_trees(self, request: Request, plan: Plan) -> str | None:
        most = max(level.source.shape[1] for level in request.schedule.levels if not isinstance(level.source, int))
        if most > most_predecessors(len(request.entry)):
            return _too_many(most, len(request.entry))
        zero = request.fresh and not any(field.requires_grad or bool(field.any()) for field in request.blank)
        layout = Layout(request.schedule, zero)
        try:
            request.found["trees"] = (layout, [plan.of_kind(kind) for kind in layout.kinds])
        except CellError as error:
            return str(error)
        return None

    def run(self, request: Request) -> Result:
        plan, x = request.found[self.name], request.x
        layout, plans = request.found.get("trees", (None, [plan]))
        fields = len(request.entry)
        if request.damping is not None:
            plans, x = [plan.damped], torch.cat([x, request.damping], -1)
        rows = fields if request.every_field else 1
        states = [x, *request.entry, *request.blank]
        gradients = torch.is_grad_enabled() and (
            any(tensor.requires_grad for tensor in states)
            or any(lookup(request.cell, path).requires_grad for path in plan.reads)
        )
        douts = tuple(gradients and field < rows for field in range(fields))
        inputs = [True] if layout is None else [kind.input for kind in layout.kinds]
        compiled = [
            each.compiled(Wants(gradients, gradients and x.requires_grad and has_input, douts))
            for each, has_input in zip(plans, inputs, strict=True)
        ]
        values = [value for each in compiled for value in each.parameter_values(request.cell, x.dtype)]
        rest = (request.schedule, machine_type(x), plan.seed(), type(request.entry), rows)
        if layout is None:
            run: Run = ChainRun(compiled[0], *rest, checkpointed=request.checkpointed and gradients)
        else:
            run = TreeRun(compiled, layout, *rest)
        found = Unfolding.apply(run, *states, *values) if gradients else run.forward([*states, *values])
        last = found[rows:]
        if request.schedule.entry is not None:
            back = request.schedule.entry.argsort()
            last = [field[back] for field in last]
        return Result(tuple(found[:rows]), type(request.entry)(*last))

    def plan_or_reason(self, cell: Any, x_size: int, sizes: tuple[int, ...], like: Tensor) -> Plan | str:
        """As `plan`; where dtype, device or installation stand against it, that is the reason."""
        return unreadable(like) or self.plan(cell, x_size, sizes, like)

    def plan(self, cell: Any, x_size: int, sizes: tuple[int, ...], like: Tensor) -> Plan | str:
        """The cell's plan, or the reason why it has none; made anew when a setting of the cell changes.

        Settings that the cell changes itself do not count where it was refused: it would be traced at every call.

        Args:
            x_size, sizes: features of x and of each field of the state.
            like: a tensor of the dtype and device to run with.
        """
        if isinstance(cell, BoundCell):
            return cell.plan
        if (slots := getattr(cell, "slots", None) or 1) > 1 and slots > most_predecessors(len(sizes)):
            return _too_many(slots, len(sizes))
        known = self._plans.setdefault(cell, _Plans())
        watched = not torch.compiler.is_compiling() or torch.is_grad_enabled()  # by autograd, when it is traced
        features = (x_size, like.dtype, sizes, watched)
        if known.changing or not known.outside:
            refused = known.found.get((fingerprint(cell, known.changing, known.outside), *features))
            if refused is not None:
                return refused
        key = (fingerprint(cell), *features)
        if key not in known.found:
            try:
                plan, seen = _made(cell, x_size, sizes, like, key[0])
                known.found[(seen, *features)] = plan
                return plan
            except Untraceable as reason:
                known.changing |= reason.changed
                known.outside &= not reason.outside
                key = (fingerprint(cell, known.changing, known.outside), *features)
                known.found[key] = told = f"{name_of(cell)} cannot be compiled: {reason}"
                tries = reason.__cause__ is not None  # a mistake of its own, that it will make again
                tell(f"{told}; {'the reference executor tries it' if tries else 'it runs on the reference executor'}.")
            finally:
                if len(known.found) > 16:
                    known.found.popitem(last=False)
        return known.found[key]


class _Plans:
    """What is known of a cell.

    Attributes:
        found: plans and reasons, by fingerprint and features.
        changing: names of settings that the cell changes whenever it is called.
        outside: whether what it reads outside itself counts; not where it changes that whenever it is called.
    """

    def __init__(self) -> None:
        self.found: OrderedDict[Any, Plan | str] = OrderedDict()
        self.changing: frozenset[str] = frozenset()
        self.outside = True


def _made(cell: Any, x_size: int, sizes: tuple[int, ...], like: Tensor, seen: Any) -> tuple[Plan, Any]:
    """The cell's plan, and its fingerprint then: what a first call sets up outside it, such as a table, is there."""
    for _ in range(2):
        plan, before = make_plan(cell, x_size, sizes, like), seen
        seen = fingerprint(cell)
        if seen == before:
            return plan, seen
    raise Untraceable("it changes what it reads outside itself whenever it is called", outside=True)


def _too_many(predecessors: int, fields: int) -> str:
    most = most_predecessors(fields)
    reason = f"a row has {predecessors} predecessors; the compiled machine takes {most}"
    return reason if most == MOST_SLOTS else f"{reason} where states have {fields} fields"
