"""What a cell's forward may branch on besides data: when any of it changes, the cell is traced anew."""

from __future__ import annotations

import copyreg
import dis
import sys
import sysconfig
import weakref
from collections import deque
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache, partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from torch import Tensor, nn

from ritornello.cells.untouched import HOOKS, OWN, SETTLED, own_classes
from ritornello.program import foreign

_OWN = OWN - {"training"}
_PLAIN = frozenset((bool, int, float, complex, str, bytes, type(None)))
_SEQUENCES = (tuple, list, set, frozenset, deque)
_DEPTH = 4  # of settings within settings
_MOST = 256  # entries of a collection, and bytes of an array, that are looked at outside the cell
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


class _Met(dict[int, int]):
    """Modules, tensors and functions, numbered as they are met.

    Attributes:
        without: names of settings that do not count.
        outside: whether what functions read outside the cell counts.
    """

    without: Collection[str] = ()
    outside = True


def fingerprint(cell: nn.Module, without: Collection[str] = (), outside: bool = True) -> tuple[Any, ...]:
    """The settings of a cell and its modules, by value where they are numbers, texts or collections of such.

    Two fingerprints are equal as long as no setting and no `requires_grad` changed, a module that had no hook has none,
    no module was replaced, no tensor came, went, took another shape or dtype, came to the CPU or left it, or became
    `foreign`, the same modules and tensors are shared as before, and no class says anything else (torch's and this
    library's never do). Objects count by identity and by their attributes; functions by identity, by their code, which
    a reload changes in place, and by what this reads of globals and of the functions around it; those of installed
    packages by identity alone.

    Args:
        cell: the cell.
        without: names of settings that do not count.
        outside: whether globals and the variables of functions around functions count.
    """
    found: list[Any] = []
    first = _Met({id(cell): 0})
    first.without, first.outside = without, outside
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
                    found += (tensor.shape, tensor.dtype, tensor.is_cpu, tensor.requires_grad, foreign(tensor), number)
        for name, inner in settings["_modules"].items():
            if inner is not None and id(inner) not in first:
                modules.append(inner)
            found += (name, inner is None or first.setdefault(id(inner), len(first)))
        found.append(any(settings[hooks] for hooks in HOOKS))
        for name, value in settings.items():
            if name not in ignored:
                found += (name, type(value), value if type(value) in _PLAIN else _frozen(value, first, _DEPTH))
    return tuple(found)


def _of_class(kind: type, ignored: Collection[str], first: _Met) -> list[Any]:
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


def _frozen(value: Any, first: _Met, depth: int) -> Any:
    """Something hashable that changes when the value does."""
    kind = type(value)
    if kind in _PLAIN:
        return kind, value
    if kind is FunctionType:
        return _of_function(value, first, depth)
    if isinstance(value, Tensor):
        number = first.setdefault(id(value), len(first))
        return value.shape, value.dtype, value.is_cpu, value.requires_grad, foreign(value), number
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
    if isinstance(value, partial):
        return _Same(value), _frozen((value.func, value.args, value.keywords), first, depth - 1)
    if kind.__name__ == "ndarray":
        return _Same(value), value.shape, value.tobytes() if value.nbytes <= _MOST else None
    attributes = dict(getattr(value, "__dict__", ()))
    for name in copyreg._slotnames(kind):  # type: ignore[attr-defined]
        attributes[name] = getattr(value, name, None)
    return _Same(value), _frozen(attributes, first, depth - 1) if attributes else None


class _Reads(NamedTuple):
    """What code may read outside: names of globals, and all names in it, of attributes too."""

    globals: tuple[str, ...]
    names: tuple[str, ...]


@lru_cache(maxsize=4096)
def _reads(code: CodeType) -> _Reads:
    found = {each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    names = {*code.co_names}
    for inner in filter(lambda constant: isinstance(constant, CodeType), code.co_consts):
        read = _reads(inner)
        found.update(read.globals)
        names.update(read.names)
    return _Reads(tuple(sorted(found)), tuple(sorted(names)))


@lru_cache(maxsize=4096)
def _installed(module: str | None) -> bool:
    """Whether a module comes with Python or with a package that was installed: its globals are no settings."""
    module = module or "__main__"
    file = getattr(sys.modules.get(module), "__file__", None)
    if module == "__main__" or file is None:
        return module.partition(".")[0] in sys.stdlib_module_names - {"__main__"}
    return file.startswith(_INSTALLED) or module.startswith("ritornello.")


def _of_function(function: FunctionType, first: _Met, depth: int) -> Any:
    """A function, and what it reads that is none of its arguments."""
    code, known = function.__code__, id(function) in first
    number = first.setdefault(id(function), len(first))
    found = [weakref.ref(function), code, number]
    if known or not depth:
        return tuple(found)
    for defaults in (function.__defaults__, function.__kwdefaults__):
        found.append(defaults and _frozen(defaults, first, depth - 1))
    if first.outside and not _installed(function.__module__):
        reads, around = _reads(code), function.__globals__
        for name in reads.globals:
            if name in around and name not in first.without:
                found.append(_outside(around[name], reads.names, first, depth - 1))
        for cell in function.__closure__ or ():
            try:
                found.append(_outside(cell.cell_contents, reads.names, first, depth - 1))
            except ValueError:  # it is not filled yet
                found.append(None)
    return tuple(found)


def _outside(value: Any, names: tuple[str, ...], first: _Met, depth: int) -> Any:
    """Of a value outside a cell what code with these names may read."""
    kind = type(value)
    if kind in _PLAIN:
        return kind, value
    if kind is FunctionType:
        return _of_function(value, first, depth)
    if kind is ModuleType:
        return None if _installed(value.__name__) else _of_names(vars(value), names, first, depth)
    if isinstance(value, type):
        own = own_classes(value)
        return _Same(value), tuple(_of_names(vars(each), names, first, depth) for each in own) if depth else None
    if isinstance(value, (dict, *_SEQUENCES)) and len(value) > _MOST:
        return _Same(value), len(value)
    if isinstance(value, (Tensor, nn.Module, BuiltinFunctionType, MethodType, partial, dict, *_SEQUENCES)):
        return _frozen(value, first, depth)
    attributes = getattr(value, "__dict__", None)
    if kind.__name__ == "ndarray" or not isinstance(attributes, dict):
        return _frozen(value, first, depth)
    return _Same(value), _of_names(attributes, names, first, depth)


def _of_names(place: Mapping[str, Any], names: tuple[str, ...], first: _Met, depth: int) -> tuple[Any, ...] | None:
    if not depth:
        return None
    kept = (name for name in names if name in place and name not in first.without)
    return tuple(_outside(place[name], names, first, depth - 1) for name in kept)


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
