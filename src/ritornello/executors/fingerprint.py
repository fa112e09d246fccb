"""What a cell's forward may branch on besides data: when any of it changes, the cell is traced anew."""

from __future__ import annotations

import copyreg
import weakref
from collections import deque
from collections.abc import Callable, Collection
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from ritornello.cells.untouched import SETTLED, own_classes

_OWN = frozenset(vars(nn.Module())) - {"training"}  # what torch itself keeps in every module
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PLAIN = frozenset((bool, int, float, complex, str, bytes, type(None)))
_SEQUENCES = (tuple, list, set, frozenset, deque)
_DEPTH = 4  # of settings within settings


def fingerprint(cell: nn.Module, without: Collection[str] = ()) -> tuple[Any, ...]:
    """The settings of a cell and its modules, by value where they are numbers, texts or collections of such.

    Two fingerprints are equal as long as no setting, no hook and no `requires_grad` changed, no module was replaced, no
    tensor came, went, took another shape or dtype, came to the CPU or left it, the same modules and tensors are shared
    as before, and no class says anything else (torch's and this library's never do). Objects count by identity and by
    their attributes; functions by identity and by their code, which a reload changes in place.

    Args:
        cell: the cell.
        without: names of settings that do not count.
    """
    found: list[Any] = []
    first: dict[int, int] = {id(cell): 0}  # modules and tensors, numbered as they are met
    modules, ignored = [cell], _OWN.union(without) if without else _OWN
    for module in modules:  # which grows
        settings = module.__dict__
        kind = type(module)
        found.append(kind)
        if kind not in SETTLED:
            for each in own_classes(kind):
                found += _of_class(each, ignored, first)
        for store in ("_parameters", "_buffers"):
            for name, tensor in settings[store].items():
                found.append(name)
                if tensor is not None:
                    number = first.setdefault(id(tensor), len(first))
                    found += (tensor.shape, tensor.dtype, tensor.is_cpu, tensor.requires_grad, number)
        for name, inner in settings["_modules"].items():
            if inner is not None and id(inner) not in first:
                modules.append(inner)
            found += (name, inner is None or first.setdefault(id(inner), len(first)))
        for hooks in _HOOKS:
            found.append(tuple(settings[hooks]) if settings[hooks] else None)
        for name, value in settings.items():
            if name not in ignored:
                found += (name, type(value), value if type(value) in _PLAIN else _frozen(value, first, _DEPTH))
    return tuple(found)


def _of_class(kind: type, ignored: Collection[str], first: dict[int, int]) -> list[Any]:
    """What a class says: its methods and its settings."""
    found: list[Any] = []
    for name, value in vars(kind).items():
        if name not in ignored and not name.startswith("__"):
            if isinstance(value, (classmethod, staticmethod)):
                value = value.__func__
            elif isinstance(value, property):
                value = value.fget
            found += (name, _frozen(value, first, _DEPTH))
    return found


def _frozen(value: Any, first: dict[int, int], depth: int) -> Any:
    """Something hashable that changes when the value does."""
    kind = type(value)
    if kind in _PLAIN:
        return kind, value
    if kind is FunctionType:
        defaults = value.__defaults__
        return weakref.ref(value), value.__code__, defaults and depth and _frozen(defaults, first, depth - 1)
    if isinstance(value, Tensor):
        number = first.setdefault(id(value), len(first))
        return value.shape, value.dtype, value.is_cpu, value.requires_grad, number
    if isinstance(value, nn.Module):
        return _Same(value), first.setdefault(id(value), len(first))
    if depth == 0 or isinstance(value, (type, BuiltinFunctionType)):
        return _Same(value)
    if isinstance(value, dict):
        return kind, tuple(
            (_frozen(key, first, depth - 1), _frozen(each, first, depth - 1)) for key, each in value.items()
        )
    if isinstance(value, _SEQUENCES):
        return kind, tuple(_frozen(each, first, depth - 1) for each in value)
    if isinstance(value, MethodType):
        return _Same(value.__func__), _Same(value.__self__)
    attributes = dict(getattr(value, "__dict__", ()))
    for name in copyreg._slotnames(kind):  # type: ignore[attr-defined]
        attributes[name] = getattr(value, name, None)
    return _Same(value), _frozen(attributes, first, depth - 1) if attributes else None


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
