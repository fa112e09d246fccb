"""Any module that makes a new state from an input and an old one, as a cell."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ritornello.cells.cell import Cell, state_type
from ritornello.cells.untouched import untouched
from ritornello.errors import ArgumentError

_ROWS = 3  # rows of the trial calls; no state has so many fields that one could be unpacked from them by mistake
_INPUT_NAMES = (
    *("input_size", "in_features", "input_dim", "in_dim", "n_input", "n_in", "ninp", "d_input", "d_in", "embed_dim"),
)
_HIDDEN_NAMES = (
    *("hidden_size", "hidden_dim", "n_hidden", "nhid", "out_features", "units", "num_units", "d_hidden", "state_size"),
)

Shape = tuple[int, ...]


class _Style(NamedTuple):
    """How a module takes its state: as one tensor, a tuple, or arguments of their own, before or after the input."""

    name: str
    fields: int
    call: Callable[[nn.Module, Tensor, tuple[Tensor, ...]], Any]


def name_of(cell: nn.Module) -> str:
    """What a cell is called in messages: its class, or that of what it stands for, such as the module it adapts.

    Example:
        >>> name_of(Adapted(torch.nn.LSTMCell(3, 4)))
        'LSTMCell'
    """
    inner = getattr(cell, "stands_for", None)
    return type(cell).__name__ if inner is None else name_of(inner)


class Adapted(Cell):
    """A module that is no `Cell`, called like one.

    Taken as they are: `forward(x, state)` with the state a tensor or a tuple of tensors, also spread over arguments,
    `forward(x, h, c)`; what comes back is the new state alone, or an output and the new state. `torch.nn.LSTMCell`,
    `GRUCell` and `RNNCell` are such modules. A module whose state may be left out is asked for its own first state.
    A field that the module sees with more axes, such as a matrix memory, is a field of rows here, flattened.

    Args:
        module: the module.
        input_size: features of x. Default: what the module's `input_size` says (or one of the usual other names).
        state_sizes: features of each field of the state, or, of one with more axes, its shape: `(4, (4, 4))`. One
            number stands for one to four fields of that size. Default: found by calling the module on a few rows.

    Raises:
        ArgumentError: a module that is not understood, with what was tried.

    Example:
        >>> cell = Adapted(torch.nn.LSTMCell(3, 4))
        >>> cell.State._fields, cell.state_sizes
        (('h', 'c'), (4, 4))
    """

    def __init__(
        self, module: nn.Module, input_size: int | None = None, state_sizes: int | Sequence[int | Shape] | None = None
    ) -> None:
        name = type(module).__name__
        _refuse_layers(module)
        input_size = _size(module, input_size, _INPUT_NAMES)
        if input_size is None:
            raise ArgumentError(f"{name} does not tell the size of its input; say input_size=... beside it.")
        style, shapes, fields = _understand(module, input_size, state_sizes)
        super().__init__(input_size, math.prod(shapes[0]))
        self.module = module
        self._style, self._shapes, self._fields = style, shapes, fields
        self._extra = len(fields) > style.fields
        state_type(*fields)  # made here, and not within a captured graph

    @property
    def stands_for(self) -> nn.Module:
        """What messages speak of."""
        return self.module

    @property
    def State(self) -> Any:
        """The type of the state."""
        return state_type(*self._fields)

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """Features of each field."""
        return tuple(math.prod(shape) for shape in self._shapes)

    def forward(self, x: Tensor, s: Any) -> Any:
        given = [f.unflatten(-1, shape) if len(shape) > 1 else f for f, shape in zip(s, self._shapes, strict=True)]
        output, new = _apart(self._style.call(self.module, x, tuple(given)[self._extra :]), self._style.fields)
        fields = (output, *new) if self._extra else new
        return self.State(*(field.flatten(x.dim() - 1) for field in fields))  # type: ignore[union-attr]

    def extra_repr(self) -> str:
        return f"{self.input_size}, state as {self._style.name}"


def _refuse_layers(module: nn.Module) -> None:
    """Raises ArgumentError for what walks over the steps by itself."""
    name = type(module).__name__
    if isinstance(getattr(module, "batch_first", None), bool) and type(module).__module__.startswith("ritornello."):
        raise ArgumentError(f"{name} is a layer, unfolded already: call it as it is; here a cell is wanted.")
    if isinstance(module, nn.RNNBase):
        sizes = f"({module.input_size}, {module.hidden_size})"
        cell = "Elman" if module.mode.startswith("RNN") else module.mode
        raise ArgumentError(
            f"torch's {name} is a whole layer, not a cell: take ritornello.nn.{name}, which keeps its weights and its "
            f"call, or ritornello.Unfold(ritornello.{cell}{sizes})."
        )


def _size(module: nn.Module, given: int | None, names: Sequence[str]) -> int | None:
    if given is not None:
        return given
    values = (getattr(module, name, None) for name in names)
    return next((value for value in values if isinstance(value, int)), None)


def _styles(fields: Sequence[int]) -> Iterator[_Style]:
    for count in fields:
        if count == 1:
            yield _Style("a tensor", 1, _spread)
        yield _Style(f"a tuple of {count}", count, _together)
        if count > 1:
            yield _Style(f"{count} arguments", count, _spread)


def _spread(module: nn.Module, x: Tensor, state: tuple[Tensor, ...]) -> Any:
    return module(x, *state)


def _together(module: nn.Module, x: Tensor, state: tuple[Tensor, ...]) -> Any:
    return module(x, state)


def _understand(
    module: nn.Module, input_size: int, sizes: int | Sequence[int | Shape] | None
) -> tuple[_Style, tuple[Shape, ...], tuple[str, ...]]:
    """The first style in which the module takes a state and gives one back alike: its style, shapes, field names."""
    name = type(module).__name__
    like = next(module.parameters(), torch.zeros(()))
    x = torch.zeros(_ROWS, input_size, dtype=like.dtype, device=like.device)
    hidden = sizes if isinstance(sizes, int) else _size(module, None, _HIDDEN_NAMES)
    tried: list[list[tuple[str, str]]] = []
    unspecialised = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
    with untouched(module), torch.enable_grad(), unspecialised, torch.random.fork_rng(devices=[]):
        own = _own_first_state(module, x) if sizes is None else None
        guesses = [own] if own else []
        if isinstance(sizes, Sequence):
            guesses = [tuple((size,) if isinstance(size, int) else tuple(size) for size in sizes)]
        elif hidden is not None:
            guesses += [((hidden,),) * count for count in (1, 2, 3, 4)]
        if not guesses:
            raise ArgumentError(f"{name} does not tell the sizes of its state; say state_sizes=... beside it.")
        for guess in guesses:
            tried.append([])
            for style in _styles([len(guess)]):
                try:
                    result = style.call(module, x, tuple(x.new_zeros(_ROWS, *shape) for shape in guess))
                    output, new = _apart(result, len(guess))
                    if style.call is _spread and len({id(n) for n in new}) < len(new):
                        raise ArgumentError("it gave back one tensor twice, as an output and the new state")
                    if all(_flat(n) == (_ROWS, math.prod(shape)) for n, shape in zip(new, guess, strict=True)):
                        return _settled(style, output, new, guess)
                    tried[-1].append((style.name, "it gave back other shapes"))
                except Exception as error:
                    tried[-1].append((style.name, f"{type(error).__name__}: {error}"))
    told: dict[str, str] = {}
    for way, reason in map(_furthest, tried):
        told.setdefault(reason, way)
    detail = "; ".join(f"{way}: {reason}" for reason, way in told.items())
    raise ArgumentError(
        f"Cannot call {name} as a cell, forward(x, state) with x of {input_size} features ({detail}); "
        f"say input_size=... and state_sizes=..., or derive a ritornello.Cell that calls it."
    )


def _furthest(trials: list[tuple[str, str]]) -> tuple[str, str]:
    """Of the ways to call a module with one guess of its state, the one that came furthest, in a line."""
    style, reason = min(trials, key=lambda each: ("it gave back" not in each[1]) + each[1].startswith("TypeError"))
    return style, reason.splitlines()[0][:100]


def _flat(tensor: Tensor) -> Shape:
    """The tensor's shape with each row flattened."""
    return (tensor.shape[0], math.prod(tensor.shape[1:])) if tensor.dim() > 1 else tuple(tensor.shape)


def _own_first_state(module: nn.Module, x: Tensor) -> tuple[Shape, ...] | None:
    """The shapes of the state that the module gives when it is called without one."""
    try:
        result = module(x)
    except Exception:  # it wants a state: what it then takes is tried next
        return None
    if isinstance(result, Tensor):
        result = (result,)
    tensors = result[-1] if len(result) == 2 and isinstance(result[1], (tuple, list)) else result
    if not all(isinstance(t, Tensor) and t.dim() > 1 and t.shape[0] == _ROWS for t in tensors):
        return None
    return tuple(tuple(t.shape[1:]) for t in tensors)


def _apart(result: Any, fields: int) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """An output, if one comes beside the state, and the state."""
    if isinstance(result, Tensor):
        result = (result,)
    if len(result) == fields and all(isinstance(value, Tensor) for value in result):
        return None, tuple(result)
    if len(result) == 2 and isinstance(result[0], Tensor):
        state = (result[1],) if isinstance(result[1], Tensor) else tuple(result[1])
        if len(state) == fields:
            return result[0], state
    if len(result) == fields + 1 and all(isinstance(value, Tensor) for value in result):
        return result[0], tuple(result[1:])
    if fields > 1 and [isinstance(value, Tensor) for value in result[: fields + 1]] == [True] * fields + [False]:
        return None, tuple(result[:fields])  # what follows the state is left aside
    raise ArgumentError(f"it gave back {len(result)} values for a state of {fields}")


def _settled(
    style: _Style, output: Tensor | None, new: tuple[Tensor, ...], shapes: tuple[Shape, ...]
) -> tuple[_Style, tuple[Shape, ...], tuple[str, ...]]:
    fields = ("h", "c", *(f"s{k}" for k in range(2, len(shapes))))[: len(shapes)]
    if output is None or output is new[0]:
        return style, shapes, fields
    return style, (_flat(output)[1:], *shapes), ("output", *fields)
