"""What a cell is: the transition function of a network, the same parameters everywhere."""

from __future__ import annotations

import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import Tensor, nn

from ritornello.errors import ArgumentError

_total = threading.local()


_state_types: dict[tuple[str, ...], Any] = {}  # and no functools.cache, which torch.compile would trace through


def state_type(*fields: str) -> Any:
    """The type of states with these fields, for cells that make theirs as they go; its instances can be pickled.

    A cell asks for it when it is made, so that within a captured graph it is there.
    """
    if fields not in _state_types:
        made: Any = namedtuple("State", fields)  # type: ignore[misc]
        made.__reduce__ = _reduced  # type: ignore[method-assign, assignment]
        _state_types[fields] = made
    return _state_types[fields]


def _reduced(state: Any) -> tuple[Any, ...]:
    return _state, (state._fields, tuple(state))


def _state(fields: tuple[str, ...], values: tuple[Tensor, ...]) -> Any:
    return state_type(*fields)(*values)


class Cell(nn.Module):
    """A transition function: `forward(x, s)` maps an input and the predecessors' states to the new state.

    Write the equations as they stand in the paper, in ordinary torch functions. `State` names the fields of
    the state; **the first field is the output**. Called by hand in a Python loop the cell is correct; that is
    its definition, and `ritornello.Unfold` only makes it convenient and fast. A cell knows no loop, no batch
    layout and no device.

    Written with `total(...)` wherever predecessors are summed, the cell runs over trees as well as chains. A cell for
    trees alone that tells its children apart says how many `slots` it has, and takes a state for each, as in
    `forward(x, left, right)`.

    Args:
        input_size: features of `x`.
        hidden_size: features of every state field, unless `state_sizes` says otherwise.

    Shapes:
        x: (rows, input_size); each field of `s`: (rows, size). Over a tree: (rows, 1, input_size) and
        (rows, predecessors, size); `total` sums over the predecessors and leaves (rows, 1, size).

    Example:
        >>> import torch, ritornello as rit
        >>> from collections import namedtuple
        >>> class Leaky(rit.Cell):
        ...     State = namedtuple("State", "h")
        ...     def __init__(self, input_size, hidden_size):
        ...         super().__init__(input_size, hidden_size)
        ...         self.W = torch.nn.Linear(input_size + hidden_size, hidden_size)
        ...     def forward(self, x, s):
        ...         return self.State(0.9 * s.h + 0.1 * torch.tanh(self.W(torch.cat([x, s.h], -1))))
        >>> outputs, last = rit.Unfold(Leaky(3, 4))(torch.randn(5, 2, 3))
        >>> outputs.shape, last.h.shape
        (torch.Size([5, 2, 4]), torch.Size([2, 4]))
    """

    State: ClassVar[Any] = namedtuple("State", "h")
    gates: ClassVar[tuple[str, ...]] = ()  # of a stacked product, in the order in which they are stacked
    recurrent: ClassVar[tuple[str, ...]] = ("U.weight",)  # the names of recurrent weights, for initialisers
    keeps: ClassVar[tuple[str, ...]] = ()  # the gates that keep the memory where they are open,
    writes: ClassVar[tuple[str, ...]] = ()  # and those that write it anew
    gate_bias: ClassVar[str] = "W.bias"  # the name of their biases, stacked in the order of `gates`
    multiplied: ClassVar[tuple[str, ...]] = ()  # the fields that recurrent weights read; none named: the first
    private: ClassVar[tuple[str, ...]] = ()  # fields that begin at 0 and are the cell's alone to write, such as a clock
    slots: int | None = None  # how many children it tells apart; None: it sums over predecessors, or knows only one

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = vars(cls).get("State")
        if isinstance(own, type) and own.__qualname__ == "State":
            own.__qualname__ = f"{cls.__qualname__}.State"  # where pickle finds it

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size)):
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ArgumentError(f"{type(self).__name__}: {name} must be a positive integer, not {size!r}.")
        self.input_size = input_size
        self.hidden_size = hidden_size

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """Features of each field of `State`, in its order. Default: `hidden_size` for every field."""
        return (self.hidden_size,) * len(self.State._fields)

    @property
    def output_size(self) -> int:
        """Features of the output: the state's first field."""
        return self.state_sizes[0]

    def zero_state(self, rows: int, like: Tensor) -> Any:
        """The state of all zeros.

        Args:
            rows: how many rows.
            like: a tensor whose dtype and device the state takes.

        Returns:
            `State` with fields of shape (rows, size).
        """
        return self.State(*(like.new_zeros(rows, size) for size in self.state_sizes))

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}"


def total(value: Tensor) -> Tensor:
    """The sum over a row's predecessors: the identity on a chain, where there is one.

    Over trees `value` has shape (rows, predecessors, size) and the sum (rows, 1, size), so that it broadcasts
    against what has one value a row. This one function is all that a cell needs to run over a sentence and
    over its parse tree (the child-sum of Tai, Socher & Manning 2015).

    Example:
        >>> import torch
        >>> total(torch.ones(2, 3)).shape
        torch.Size([2, 3])
        >>> with meaning_of_total(over_predecessors):
        ...     total(torch.ones(2, 4, 3)).shape
        torch.Size([2, 1, 3])
    """
    meaning = getattr(_total, "meaning", None)
    return value if meaning is None else meaning(value)


def over_predecessors(value: Tensor) -> Tensor:
    """What `total` means where states carry an axis of predecessors, -2."""
    return value.sum(-2, keepdim=True)


@contextmanager
def meaning_of_total(meaning: Callable[[Tensor], Tensor] | None) -> Iterator[None]:
    """Within it (in this thread) `total` is that function; None: the identity.

    For executors; a person who writes cells never needs it.
    """
    before = getattr(_total, "meaning", None)
    _total.meaning = meaning
    try:
        yield
    finally:
        _total.meaning = before
