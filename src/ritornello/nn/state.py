"""States of compositions: nested tuples of tensors, taken apart and put together again."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def leaves(carry: Any) -> list[Tensor]:
    """The tensors of a nested tuple, in order.

    >>> import torch
    >>> [int(leaf) for leaf in leaves((torch.tensor(1), (torch.tensor(2),)))]
    [1, 2]
    """
    if carry is None:
        return []
    if isinstance(carry, Tensor):
        return [carry]
    return [leaf for part in carry for leaf in leaves(part)]


def refill(like: Any, tensors: list[Tensor]) -> Any:
    """A nested tuple of the structure of `like` with other tensors, in the order of `leaves`."""
    rest = iter(tensors)

    def fill(part: Any) -> Any:
        if part is None:
            return None
        if isinstance(part, Tensor):
            return next(rest)
        parts = [fill(inner) for inner in part]
        return type(part)(*parts) if hasattr(part, "_fields") else tuple(parts)

    return fill(like)


def detached(carry: Any) -> Any:
    """The carried state cut off from the graph that made it: where truncated back-propagation through time stops."""
    return refill(carry, [leaf.detach() for leaf in leaves(carry)])
