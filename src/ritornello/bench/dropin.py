"""`torch.nn`'s recurrent modules, and `ritornello.nn`'s in their place: the same weights and results, other times."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from ritornello.bench.check import TOLERANCES, Mismatch, relative
from ritornello.bench.clock import interleave
from ritornello.bench.contenders import NN, OURS
from ritornello.bench.settings import DENSE, Settings, Shape
from ritornello.cells.catalogue import imported
from ritornello.errors import ArgumentError
from ritornello.nn import replace

DEEP: Shape = (100, 32, 256)  # three bidirectional layers
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Replaced(NamedTuple):
    """A model, and the same with its recurrent modules replaced.

    Attributes:
        name: what to call it.
        theirs, ours: the two, with equal weights.
        inputs: what they are called with.
        exact: the model in float32 and its inputs, where these are in half precision.
    """

    name: str
    theirs: nn.Module
    ours: nn.Module
    inputs: tuple[Any, ...]
    exact: tuple[nn.Module, tuple[Any, ...]] | None = None


def cases(models: tuple[str, ...], executor: str = "auto") -> Iterator[Replaced]:
    """What is compared: deep bidirectional stacks, a layer at each shape of the benchmark, half precision, and models.

    Args:
        models: `FILE.py:function` or `module:function`, each a function without arguments that returns a model and a
            tuple of what it is called with.
        executor: ritornello's.

    Raises:
        ArgumentError: a function that is not there or returns something else.
    """
    given = [_loaded(name, executor) for name in models]  # first: a mistake in one is told at once
    time, batch, hidden = DEEP
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        model, x = kind(hidden, hidden, 3, bidirectional=True), torch.randn(time, batch, hidden)
        lengths = torch.randint(time // 10, time + 1, (batch,))
        yield _replaced(f"{kind.__name__}, 3 × 2 × {hidden}, padded", model, (x,), executor)
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        yield _replaced(f"{kind.__name__}, 3 × 2 × {hidden}, packed", model, (packed,), executor)
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        for time, batch, hidden in DENSE:
            x = torch.randn(time, batch, hidden)
            yield _replaced(f"{kind.__name__} {time}, {batch}, {hidden}", kind(hidden, hidden), (x,), executor)
    time, batch, hidden = DEEP
    for name, dtype in HALF.items():
        model, x = nn.LSTM(hidden, hidden), torch.randn(time, batch, hidden)
        made = _replaced(f"LSTM {time}, {batch}, {hidden}, {name}", model.to(dtype), (x.to(dtype),), executor)
        yield made._replace(exact=(copy.deepcopy(model).float(), (x.to(dtype).float(),)))
    yield from given


def _loaded(name: str, executor: str = "auto") -> Replaced:
    found = imported(name)
    made = found() if callable(found) else None
    if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[0], nn.Module):
        raise ArgumentError(f"--model {name}: it must be a function that returns a model and a tuple of its inputs.")
    return _replaced(name.rsplit("/", 1)[-1], *made, executor)


def _replaced(name: str, model: nn.Module, inputs: tuple[Any, ...], executor: str = "auto") -> Replaced:
    model = model.eval()  # what dropout draws could not be compared
    ours = copy.deepcopy(model)
    replace(ours, executor=executor)
    return Replaced(name, model, ours, inputs)


def measure(models: tuple[str, ...], settings: Settings, doing: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """A row for each case and pass.

    Raises:
        Mismatch: two that do not compute the same; they are not timed.
    """
    passes = {"forward": forward, "forward+backward": both}
    if not settings.backward:
        del passes["forward+backward"]
    for case in cases(models, settings.executor):
        doing(f"{case.name}: the same?")
        difference = agree(case)
        for what, call in passes.items():
            doing(f"{case.name}: {what}")
            calls = {NN: partial(call, case.theirs, case.inputs), OURS: partial(call, case.ours, case.inputs)}
            times = interleave(calls, settings.seconds)
            ms = {name: 1e3 * each.best for name, each in times.items()}
            yield {
                "case": case.name,
                "what": what,
                "ms": ms,
                "ratio": ms[NN] / ms[OURS],
                "median_ratio": times[NN].median / times[OURS].median,
                "difference": difference,
            }


def forward(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """Outputs, without a graph."""
    with torch.no_grad():
        return _tensors(model(*inputs))


def both(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """Outputs, and the gradients of all parameters."""
    outputs = [value for value in _tensors(model(*inputs)) if value.requires_grad]
    parameters = [p for p in model.parameters() if p.requires_grad]
    ones = [torch.ones_like(value) for value in outputs]
    gradients = torch.autograd.grad(outputs, parameters, ones, materialize_grads=True, allow_unused=True)
    return [*(value.detach() for value in outputs), *gradients]


def agree(case: Replaced) -> float:
    """The largest relative difference of outputs and gradients.

    Raises:
        Mismatch: one beyond what is allowed.
    """
    found, expected = both(case.ours, case.inputs), both(case.theirs, case.inputs)
    if not found:
        raise ArgumentError(f"{case.name}: the model returns no tensor that depends on its parameters.")
    allowed = TOLERANCES[torch.float32]
    if case.exact is not None:
        expected, allowed = both(*case.exact), TOLERANCES[torch.bfloat16]
    difference = max(relative(one, other) for one, other in zip(found, expected, strict=True))
    if not difference <= allowed:
        raise Mismatch(f"{case.name}: replaced modules differ by {difference:.1e} where {allowed:.0e} is allowed.")
    return difference


def _tensors(found: Any) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found] if found.is_floating_point() else []
    if isinstance(found, PackedSequence):
        return [found.data]
    if isinstance(found, dict):
        found = found.values()
    return [t for part in found for t in _tensors(part)] if isinstance(found, (tuple, list)) else []
