"""What a cell's forward may branch on besides data: when any of it changes, the cell is traced anew."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Collection
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

_OWN = frozenset(vars(nn.Module())) - {"training"}  # what torch itself keeps in every module
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PLAIN = frozenset((bool, int, float, complex, str, bytes, type(None)))
_SEQUENCES = (tuple, list, set, frozenset, deque)
_DEPTH = 4  # of settings within settings


def fingerprint(cell: nn.Module, without: Collection[str] = ()) -> tuple[Any, ...]:
    """The settings of a cell and its modules, by value where they are numbers, texts or collections of such.

    Two fingerprints are equal as long as no setting, no hook and no `requires_grad` changed, no module was replaced, no
    tensor came, went or took another shape, and the same modules and tensors are shared as before. Objects count by
    identity and by their attributes; functions by identity.

    Args:
        cell: the cell.
        without: names of settings that do not count.
    """
    found: list[Any] = []
    first: dict[int, int] = {id(cell): 0}  # modules and tensors, numbered as they are met
    modules, ignored = [cell], _OWN.union(without) if without else _OWN
    for module in modules:  # which grows
        settings = module.__dict__
        found.append(type(module))
        for kind in ("_parameters", "_buffers"):
            for name, tensor in settings[kind].items():
                found.append(name)
                if tensor is not None:
                    found += (tensor.shape, tensor.requires_grad, first.setdefault(id(tensor), len(first)))
        for name, inner in settings["_modules"].items():
            if inner is not None and id(inner) not in first:
                modules.append(inner)
            found += (name, inner is None or first.setdefault(id(inner), len(first)))
        for kind in _HOOKS:
            found.append(tuple(settings[kind]) if settings[kind] else None)
        for name, value in settings.items():
            if name not in ignored:
                found += (name, type(value), value if type(value) in _PLAIN else _frozen(value, first, _DEPTH))
    return tuple(found)


def _frozen(value: Any, first: dict[int, int], depth: int) -> Any:
    """Something hashable that changes when the value does."""
    kind = type(value)
    if kind in _PLAIN:
        return kind, value
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.requires_grad, first.setdefault(id(value), len(first))
    if isinstance(value, nn.Module):
        return _Same(value), first.setdefault(id(value), len(first))
    if depth == 0 or isinstance(value, (type, FunctionType, BuiltinFunctionType)):
        return _Same(value)
    if isinstance(value, dict):
        return kind, tuple(
            (_frozen(key, first, depth - 1), _frozen(each, first, depth - 1)) for key, each in value.items()
        )
    if isinstance(value, _SEQUENCES):
        return kind, tuple(_frozen(each, first, depth - 1) for each in value)
    if isinstance(value, MethodType):
        return _Same(value.__func__), _Same(value.__self__)
    attributes = getattr(value, "__dict__", None)
    return _Same(value), _frozen(dict(attributes), first, depth - 1) if attributes else None


class _Same:
    """Equal to itself as long as the object lives; keeps it alive only if nothing else is possible."""

    __slots__ = ("_hash", "_of")

    def __init__(self, value: Any) -> None:
        self._hash = id(value)
        self._of: Callable[[], Any]
        try:
            self._of = weakref.ref(value)
        except TypeError:  # such as a number type of its own
            self._of = lambda: value

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        mine = self._of()
        return isinstance(other, _Same) and mine is not None and mine is other._of()
