"""States of compositions: nested tuples of tensors, taken apart and put together again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ritornello.errors import ArgumentError


def leaves(carry: Any) -> list[Any]:
    """What stands in a nested tuple, in order: of a state its tensors.

    >>> import torch
    >>> [int(leaf) for leaf in leaves((torch.tensor(1), (torch.tensor(2),)))]
    [1, 2]
    """
    if carry is None:
        return []
    if not isinstance(carry, (tuple, list)):
        return [carry]
    return [leaf for part in carry for leaf in leaves(part)]


def refill(like: Any, values: Sequence[Any]) -> Any:
    """A nested tuple of the structure of `like` with other values, in the order of `leaves`."""
    rest = iter(values)

    def fill(part: Any) -> Any:
        if part is None:
            return None
        if not isinstance(part, (tuple, list)):
            return next(rest)
        parts = [fill(inner) for inner in part]
        return type(part)(*parts) if hasattr(part, "_fields") else tuple(parts)

    return fill(like)


def detached(carry: Any) -> Any:
    """The carried state cut off from the graph that made it: where truncated back-propagation through time stops."""
    return refill(carry, [leaf.detach() for leaf in leaves(carry)])


def parts_of(module: nn.Module, state: Any, count: int) -> Sequence[Any]:
    """The states of a composition's parts; None for each where none is given.

    Raises:
        ArgumentError: other than so many, numbers, or tensors with an axis of layers.
    """
    if state is None:
        return [None] * count
    if isinstance(state, list) and state and all(isinstance(part, int) for part in state):
        raise ArgumentError(
            f"{type(module).__name__}: state must be a tuple of {count} states, not numbers (those of steps are given "
            "by name, lengths=...)."
        )
    if not isinstance(state, (tuple, list)) or len(state) != count:
        came = f"{len(state)} states" if isinstance(state, (tuple, list)) else type(state).__name__
        raise ArgumentError(f"{type(module).__name__}: state must be a tuple of {count} states, not {came}.")
    if any(isinstance(part, Tensor) and part.dim() == 3 for part in state):
        raise ArgumentError(
            f"{type(module).__name__}: state must be a tuple of {count} states with fields (batch, size), not tensors "
            "of all layers together, which are the state of ritornello.nn.RNN, LSTM and GRU."
        )
    return state
