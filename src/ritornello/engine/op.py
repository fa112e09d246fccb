"""Unfolding over chains as one torch operation, for graphs that are captured: `torch.compile`, `torch.export`.

The op carries the program itself, so that a saved graph runs in a process that never saw the cell. Its schedule is made
when it runs: the graph does not grow with the number of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from types import FunctionType
from typing import Any, NamedTuple
from unittest.mock import patch
from weakref import WeakValueDictionary

import torch
from torch import Tensor, library

from ritornello.cells.untouched import OWN, own_classes
from ritornello.executors import EXECUTORS
from ritornello.executors.chains import ChainRun
from ritornello.executors.cpu import CpuExecutor
from ritornello.executors.plan import Plan, evaluate
from ritornello.executors.run import inside
from ritornello.program import Node, Program, Value, Wants
from ritornello.structures import Schedule, chain, from_rows, to_rows

_CELLS: WeakValueDictionary[int, Any] = WeakValueDictionary()


@lru_cache(maxsize=64)
def plan_of(program: str) -> Plan:
    """The plan of a program's text."""
    return Plan(Program.from_text(program))


def remember(cell: Any) -> int:
    """A number under which `program_text` finds the cell: what a captured graph may hold in its place."""
    _CELLS[id(cell)] = cell
    return id(cell)


class Captured(NamedTuple):
    """What a captured graph holds of a cell, all of it constants.

    Attributes:
        program: its text, or "" if it has none,
        reason: why.
        fields: of the state.
        random: whether it draws at random.
        paths: of the parameters that the op reads; None where they must be computed from others first,
        nodes, values: by these.
        settings: numbers and texts, and collections of these alone, by their paths,
        others: and paths of functions: the graph is captured anew when one of them changes.
    """

    program: str
    fields: int
    random: bool
    paths: tuple[str, ...] | None
    nodes: tuple[Node, ...]
    values: tuple[Value, ...]
    reason: str = ""
    settings: tuple[tuple[str, Any], ...] = ()
    others: tuple[str, ...] = ()


def capture(number: int, training: bool) -> Captured:
    """What there is to hold of a cell. `training` is there so that graphs are captured anew with it.

    While a graph is captured tensors are stand-ins; none of what tracing does belongs into the graph.
    """
    cell = _CELLS[number]
    like = next(cell.parameters(), torch.zeros(()))
    executor = EXECUTORS["cpu"]
    assert isinstance(executor, CpuExecutor)
    captured = capture_plan(lambda: executor.plan_or_reason(cell, cell.input_size, tuple(cell.state_sizes), like))
    found = list(_settings(cell))
    plain = tuple((path, _frozen(value)) for path, value in found if _is_plain(value))
    others = tuple(path for path, value in found if callable(value) and not isinstance(value, (type, torch.nn.Module)))
    return captured._replace(settings=plain, others=others)


def _settings(cell: Any) -> Iterator[tuple[str, Any]]:
    """The attributes of modules, and of their classes but for methods, by their paths."""
    for prefix, module in cell.named_modules():
        said = {name: value for name, value in vars(module).items() if name == "training" or name not in OWN}
        for kind in own_classes(type(module)):
            for name, value in vars(kind).items():
                if not name.startswith("__") and not isinstance(value, FunctionType):
                    said.setdefault(name, value)
        for name, value in said.items():
            yield (f"{prefix}.{name}" if prefix else name), value


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple, dict)):
        return all(map(_is_plain, (*value, *value.values()) if isinstance(value, dict) else value))
    return type(value) in (bool, int, float, str, type(None)) and value == value  # not NaN


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        value = tuple(value.items())
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def differs(value: Any, before: Any) -> bool:
    """Whether a setting is another than what was captured of it; leaf by leaf, so that torch.compile watches each."""
    if isinstance(value, dict):
        value = list(value.items())
    if isinstance(value, (list, tuple)):
        if not isinstance(before, tuple) or len(value) != len(before):
            return True
        return any(differs(one, other) for one, other in zip(value, before, strict=True))
    return value != before


def capture_plan(make: Callable[[], Plan | str]) -> Captured:
    """The same of the plan that a function makes."""
    call = torch.fx._symbolic_trace._orig_module_call  # torch.export has put its own in place of it
    with patch.object(torch.nn.Module, "__call__", call):
        plan = make()
    if not isinstance(plan, Plan):
        return Captured("", 0, False, None, (), (), plan)
    code = plan.compiled(_wants(plan, True)).code
    nodes = code.program.nodes
    simple = all(nodes[value].op == "parameter" for value in code.parameters)
    paths = tuple(nodes[value].attributes[0] for value in code.parameters) if simple else None
    shown = () if simple else nodes
    return Captured(plan.program.to_text(), len(plan.sizes), plan.random, paths, shown, tuple(code.parameters))


# As torch.compiler.assume_constant_result does, whose import of torch._dynamo takes longer than that of torch.
capture._dynamo_marked_constant = True  # type: ignore[attr-defined]


def captured_values(captured: Captured, find: Callable[[str], Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The parameter-rate values that the op reads."""
    if captured.paths is not None:
        return [find(path) for path in captured.paths]
    return evaluate(captured.nodes, captured.values, find, dtype)


def new_seed(captured: Captured) -> Tensor:
    """Drawn within the graph."""
    return torch.randint(2**62, ()) if captured.random else torch.zeros((), dtype=torch.long)


def _wants(plan: Plan, gradients: bool) -> Wants:
    return Wants(gradients, gradients, (gradients,) * len(plan.sizes))


def _schedule(x: Tensor, lengths: Tensor | None, resets: Tensor | None, reverse: bool) -> Schedule:
    time, batch = x.shape[:2]
    if lengths is not None:
        kind, shape = lengths.dtype, tuple(lengths.shape)
        whole = not (kind.is_floating_point or kind.is_complex or kind == torch.bool) or not lengths.numel()
        torch._check(whole, lambda: f"lengths must be integers, not {kind}")
        torch._check(shape == (batch,), lambda: f"lengths has shape {shape}; expected ({batch},)")
        torch._check(bool(((lengths >= 0) & (lengths <= time)).all()), lambda: f"lengths must lie between 0 and {time}")
        lengths = lengths.long()
    if resets is not None:
        of, form = resets.dtype, tuple(resets.shape)
        torch._check(of == torch.bool, lambda: f"resets must be booleans, not {of}")
        torch._check(form == (time, batch), lambda: f"resets has shape {form}; expected {(time, batch)}")
    return chain(time, batch, lengths=lengths, resets=resets, reverse=reverse)


class _Call:
    """One call of the op: tensors in its own layout (time, batch, size) brought to rows and back."""

    def __init__(
        self,
        program: str,
        x: Tensor,
        lengths: Tensor | None,
        resets: Tensor | None,
        reverse: bool,
        seed: Tensor,
        type: str,
        gradients: bool,
    ) -> None:
        self.plan = plan_of(program)
        self.time, self.batch = x.shape[:2]
        self.schedule = _schedule(x, lengths, resets, reverse)
        compiled = self.plan.compiled(_wants(self.plan, gradients))
        self.run = ChainRun(compiled, self.schedule, type, int(seed), tuple, len(self.plan.sizes))

    def rows(self, value: Tensor) -> Tensor:
        return to_rows(value.reshape(self.time * self.batch, value.shape[-1]), self.schedule)

    def steps(self, rows: Tensor) -> Tensor:
        return from_rows(rows, self.schedule, self.time * self.batch).view(self.time, self.batch, rows.shape[-1])

    def entries(self, values: Sequence[Tensor]) -> list[Tensor]:
        order = self.schedule.entry
        return [value if order is None else value[order] for value in values]

    def sequences(self, values: Sequence[Tensor]) -> list[Tensor]:
        order = self.schedule.entry
        return [value if order is None else value[order.argsort()] for value in values]

    def inputs(
        self, x: Tensor, entry: Sequence[Tensor], blank: Sequence[Tensor], values: Sequence[Tensor]
    ) -> list[Tensor]:
        order = self.run.compiled[0].code.parameters
        known = dict(zip(self.plan.compiled(_wants(self.plan, True)).code.parameters, values, strict=True))
        return [self.rows(x), *self.entries(entry), *blank, *(known[value] for value in order)]


def _memory(plan: Plan, x: Tensor, type: str, gradients: bool) -> tuple[list[Tensor], Tensor]:
    """All rows' states, and the frames for a backward pass; enough for sequences of full length."""
    rows, dtype = x.shape[0] * x.shape[1], inside(type)
    stride = plan.compiled(_wants(plan, True)).core.frame_stride if gradients else 0
    return [x.new_empty(rows, size, dtype=dtype) for size in plan.sizes], x.new_empty(rows * stride, dtype=dtype)


@library.custom_op("ritornello::unfold", mutates_args=())
def unfold(
    x: Tensor,
    entry: list[Tensor],
    blank: list[Tensor],
    values: list[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    seed: Tensor,
    program: str,
    reverse: bool,
    type: str,
    gradients: bool,
) -> list[Tensor]:
    """Unfolds a program over a batch of chains.

    Args:
        x: (time, batch, inputs).
        entry, blank: fields (batch, size) and (1, size).
        values: parameter-rate values, in the order of the code for a backward pass.
        lengths: (batch,); resets: (time, batch).
        seed: of what the program draws at random.
        program: its text.
        reverse: walk backwards.
        type: of the machine; "bfloat16" for products in it, as under torch.autocast.
        gradients: keep what a backward pass needs.

    Returns:
        fields (time, batch, size), final fields (batch, size), and with `gradients` all rows' states and their frames.
    """
    call = _Call(program, x, lengths, resets, reverse, seed, type, gradients)
    fields, rows = len(entry), call.schedule.rows
    kept, frame = _memory(call.plan, x, type, gradients)
    found = call.run.forward(call.inputs(x, entry, blank, values), [field[:rows] for field in kept], frame.data_ptr())
    outputs = [call.steps(field).clone() for field in found[:fields]]
    return [*outputs, *call.sequences(found[fields:]), *((*kept, frame) if gradients else ())]


@unfold.register_fake
def _(
    x: Tensor,
    entry: list[Tensor],
    blank: list[Tensor],
    values: list[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    seed: Tensor,
    program: str,
    reverse: bool,
    type: str,
    gradients: bool,
) -> list[Tensor]:
    plan = plan_of(program)
    time, batch = x.shape[:2]
    steps = [x.new_empty(time, batch, size) for size in plan.sizes]
    last = [x.new_empty(batch, size) for size in plan.sizes]
    if not gradients:
        return [*steps, *last]
    kept, frame = _memory(plan, x, type, True)
    return [*steps, *last, *kept, frame]


@library.custom_op("ritornello::unfold_backward", mutates_args=())
def unfold_backward(
    d_steps: list[Tensor],
    d_last: list[Tensor],
    x: Tensor,
    entry: list[Tensor],
    blank: list[Tensor],
    values: list[Tensor],
    kept: list[Tensor],
    frame: Tensor,
    lengths: Tensor | None,
    resets: Tensor | None,
    seed: Tensor,
    program: str,
    reverse: bool,
    type: str,
) -> list[Tensor]:
    """The gradients of x, entry, blank and values."""
    call = _Call(program, x, lengths, resets, reverse, seed, type, True)
    rows = call.schedule.rows
    tensors = call.inputs(x, entry, blank, values)
    work = frame.clone()  # the backward pass writes into it
    call.run.frames = [work.data_ptr()] if len(frame) else []  # without frames the run goes forward once more
    out = [field[:rows] for field in kept] if len(frame) else _outputs(call, tensors)
    gradients = [*(call.rows(d) for d in d_steps), *call.entries(d_last)]
    found = call.run.backward(tensors, out, gradients, [True] * len(tensors))
    d_x, states, d_values = found[0], found[1 : 1 + 2 * len(entry)], found[1 + 2 * len(entry) :]
    assert d_x is not None
    d_entry = call.sequences(states[: len(entry)])  # type: ignore[arg-type]
    return [call.steps(d_x).clone(), *d_entry, *states[len(entry) :], *d_values]  # type: ignore[list-item]


def _outputs(call: _Call, tensors: Sequence[Tensor]) -> list[Tensor]:
    """All rows' states, where the graph was captured without keeping them."""
    call.run.forward(tensors)
    return call.run.out


@unfold_backward.register_fake
def _(
    d_steps: list[Tensor],
    d_last: list[Tensor],
    x: Tensor,
    entry: list[Tensor],
    blank: list[Tensor],
    values: list[Tensor],
    kept: list[Tensor],
    frame: Tensor,
    lengths: Tensor | None,
    resets: Tensor | None,
    seed: Tensor,
    program: str,
    reverse: bool,
    type: str,
) -> list[Tensor]:
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, *entry, *blank, *values)]


def _setup(ctx: Any, inputs: Any, output: list[Tensor]) -> None:
    x, entry, blank, values, lengths, resets, seed, program, reverse, type, gradients = inputs
    fields = len(entry)
    kept = output[2 * fields :] if gradients else [x.new_empty(0)] * (fields + 1)
    ctx.save_for_backward(x, *entry, *blank, *values, *kept, seed, lengths, resets)
    ctx.program, ctx.reverse, ctx.type, ctx.fields, ctx.values = program, reverse, type, fields, len(values)


def _backward(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
    x, *rest = ctx.saved_tensors
    fields, count = ctx.fields, ctx.values
    entry, blank, values = rest[:fields], rest[fields : 2 * fields], rest[2 * fields : 2 * fields + count]
    kept, frame = rest[2 * fields + count : 3 * fields + count], rest[3 * fields + count]
    seed, lengths, resets = rest[3 * fields + count + 1 :]
    sizes = plan_of(ctx.program).sizes
    d_steps = [_given(g, (*x.shape[:2], size), x) for g, size in zip(gradients[:fields], sizes, strict=True)]
    d_last = [_given(g, (x.shape[1], size), x) for g, size in zip(gradients[fields : 2 * fields], sizes, strict=True)]
    found = unfold_backward(
        d_steps, d_last, x, entry, blank, values, kept, frame, lengths, resets, seed, ctx.program, ctx.reverse, ctx.type
    )
    d_entry, d_blank = found[1 : 1 + fields], found[1 + fields : 1 + 2 * fields]
    return found[0], d_entry, d_blank, found[1 + 2 * fields :], None, None, None, None, None, None, None


def _given(gradient: Tensor | None, shape: tuple[int, ...], like: Tensor) -> Tensor:
    return like.new_zeros(shape) if gradient is None else gradient


unfold.register_autograd(_backward, setup_context=_setup)
