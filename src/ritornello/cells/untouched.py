"""Calls on trial: what a module does to itself while it is called is undone, and told."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

OWN = frozenset(vars(nn.Module()))  # what torch itself keeps in every module
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")  # in it
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_COLLECTIONS = (list, set, deque)
_LIBRARIES = ("torch.", "ritornello.")
SETTLED: set[type] = {object}  # their classes, which say what they always said, as they are met


@contextmanager
def untouched(module: nn.Module) -> Iterator[dict[str, Any]]:
    """Afterwards the module and its classes are as they were, whatever is called within.

    Attributes are put back, and what stands in the lists, sets and dicts among them. Tensors that are no parameters
    are copies meanwhile, so that nobody sees what is written into them.

    Yields:
        what the calls left in place of what was there, by the attribute's name; filled at the end. An attribute that
        is new, such as a `functools.cached_property`, counts only if it holds a tensor.
    """
    copies: dict[int, Tensor] = {}
    changed: dict[str, Any] = {}
    with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext():
        held = [(name, place, _entries(place)) for each in module.modules() for name, place in _places(each)]
        lent = [{key: _copied(value, copies) for key, value in before.items()} for _, _, before in held]
        for (_, place, before), now in zip(held, lent, strict=True):
            _put(place, before, now)
        try:
            yield changed
        finally:
            written = {id(copy) for copy in copies.values() if copy._version > 0}
            for (name, place, before), now in zip(held, lent, strict=True):
                after = _entries(place)
                for key in now.keys() | after.keys():
                    known = key in now or isinstance(place, _COLLECTIONS)
                    if not _same(now.get(key), after.get(key)) and (known or holds_tensors(after[key])):
                        changed[name or key] = after.get(key)
                changed.update({name or key: value for key, value in now.items() if id(value) in written})
                _put(place, after, before)


def holds_tensors(value: Any) -> bool:
    """Whether a value is a tensor or a collection of some."""
    return any(isinstance(leaf, Tensor) for leaf in torch.utils._pytree.tree_leaves(value))


def _copied(value: Any, copies: dict[int, Tensor]) -> Any:
    """A copy of a tensor, the same whenever it is met; whatever else, and parameters, as they are."""
    if not isinstance(value, Tensor) or isinstance(value, nn.Parameter):
        return value
    if id(value) not in copies:
        copies[id(value)] = value.clone()
    return copies[id(value)]


def own_classes(kind: type) -> list[type]:
    """A class and its bases, without those of torch and of this library."""
    if kind in SETTLED:
        return []
    own = [each for each in kind.__mro__ if each not in SETTLED]
    for each in own:
        if each.__module__.startswith(_LIBRARIES):
            SETTLED.add(each)
    return [each for each in own if each not in SETTLED]


class _ClassAttributes:
    """What a class says, as a dict that can be written to."""

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def items(self) -> list[tuple[str, Any]]:
        return [(name, value) for name, value in vars(self._kind).items() if not name.startswith("__")]

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self._kind, name, value)

    def __delitem__(self, name: str) -> None:
        delattr(self._kind, name)


def _places(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What holds the module's state: its attributes, and with their names the collections among them."""
    for kind in own_classes(type(module)):
        yield "", _ClassAttributes(kind)
    yield "", vars(module)
    for name, value in vars(module).items():
        if isinstance(value, (dict, *_COLLECTIONS)) or name == "_buffers":
            yield "" if name in OWN else name, value


def _entries(place: Any) -> dict[Any, Any]:
    """What stands in a dict, by key, or in another collection, by number."""
    return dict(enumerate(place)) if isinstance(place, _COLLECTIONS) else dict(place.items())


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and type(one) is type(other):
        return len(one) == len(other) and all(map(_same, one, other))
    return one is other or (isinstance(one, _PLAIN) and type(one) is type(other) and one == other)


def _put(place: Any, now: dict[Any, Any], wanted: dict[Any, Any]) -> None:
    """Brings what stands in a place from `now` to `wanted`."""
    if isinstance(place, _COLLECTIONS):
        if len(now) != len(wanted) or any(now[key] is not wanted[key] for key in now):
            place.clear()
            (place.update if isinstance(place, set) else place.extend)(wanted.values())
        return
    for key in now.keys() - wanted.keys():
        del place[key]
    for key in [key for key, value in wanted.items() if now.get(key, place) is not value]:
        place[key] = wanted[key]
