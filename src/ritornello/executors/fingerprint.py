"""What a cell's forward may branch on besides data: when any of it changes, the cell is traced anew."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

_OWN = frozenset(vars(nn.Module())) - {"training"}  # what torch itself keeps in every module
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_SEQUENCES = (tuple, list, set, frozenset, deque)
_DEPTH = 4  # of settings within settings


def fingerprint(cell: nn.Module) -> tuple[Any, ...]:
    """The settings of a cell and its modules, by value where they are numbers, texts or collections of such.

    Two fingerprints are equal as long as no setting changed, no module was replaced, and no tensor came, went or took
    another shape. Objects count by identity and by their attributes; functions by identity.
    """
    found: list[Any] = []
    for module in cell.modules():
        found.append(type(module))
        settings = vars(module)
        for tensors in (settings["_parameters"], settings["_buffers"]):
            for name, tensor in tensors.items():
                found += (name, None if tensor is None else tensor.shape)
        found += (
            tuple(settings["_modules"].keys()),
            len(settings["_forward_hooks"]),
            len(settings["_forward_pre_hooks"]),
        )
        for name, value in settings.items():
            if name not in _OWN:
                found += (name, type(value), value if type(value) in _PLAIN else _frozen(value, _DEPTH))
    return tuple(found)


def _frozen(value: Any, depth: int) -> Any:
    """Something hashable that changes when the value does."""
    kind = type(value)
    if kind in _PLAIN:
        return kind, value
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    if depth == 0 or isinstance(value, (nn.Module, type, FunctionType, BuiltinFunctionType)):
        return _Same(value)
    if isinstance(value, dict):
        return kind, tuple((_frozen(key, depth - 1), _frozen(each, depth - 1)) for key, each in value.items())
    if isinstance(value, _SEQUENCES):
        return kind, tuple(_frozen(each, depth - 1) for each in value)
    if isinstance(value, MethodType):
        return _Same(value.__func__), _Same(value.__self__)
    attributes = getattr(value, "__dict__", None)
    return _Same(value), _frozen(dict(attributes), depth - 1) if attributes else None


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
