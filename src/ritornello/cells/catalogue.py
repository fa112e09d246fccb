"""The catalogue: which cells there are by name, and how a foreign one is found."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ritornello.cells.cell import Cell
from ritornello.cells.elman import Elman
from ritornello.cells.gru import GRU
from ritornello.cells.lstm import LSTM
from ritornello.errors import ArgumentError, nearest

CELLS: dict[str, type[Cell]] = {"elman": Elman, "gru": GRU, "lstm": LSTM}


def is_foreign(name: str) -> bool:
    """Whether `name` names a cell of the user's own, `module:Class` or `FILE.py:Class`.

    >>> is_foreign("lstm"), is_foreign("my_module:MyCell")
    (False, True)
    """
    return ":" in name


def find(name: str) -> type[nn.Module]:
    """The cell class of that name.

    Args:
        name: a name of the catalogue (`elman`, `gru`, `lstm`), or `module:Class` or `FILE.py:Class` for a cell of your
            own, which is imported: the current folder is searched first. **Importing runs that module's code.**

    Raises:
        ArgumentError: an unknown name, a module that cannot be imported, or a class that is not there or is no
            module.

    Example:
        >>> find("lstm").__name__
        'LSTM'
    """
    if not is_foreign(name):
        if name not in CELLS:
            raise ArgumentError(
                f"Unknown cell {name!r}: {nearest(name, CELLS)}; or name your own as module:Class or FILE.py:Class."
            )
        return CELLS[name]
    found = imported(name, _is_module)
    if not _is_module(found):
        raise ArgumentError(
            f"{name!r} is a {type(found).__name__}, not a subclass of ritornello.Cell or torch.nn.Module."
        )
    return found


def _is_module(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, nn.Module)


def imported(name: str, fits: Callable[[Any], bool] = callable) -> Any:
    """What `module:Name` or `FILE.py:Name` names.

    Args:
        name: as written.
        fits: what to propose where there is no such thing.

    Raises:
        ArgumentError: it cannot be imported, or there is no such thing in it.
    """
    module_name, _, what = name.rpartition(":")
    if not module_name:
        raise ArgumentError(f"{name!r} names nothing; write module:Name or FILE.py:Name.")
    module = _load_file(Path(module_name)) if module_name.endswith(".py") else _load_module(module_name)
    if not hasattr(module, what):
        known = [n for n, value in vars(module).items() if fits(value)]
        raise ArgumentError(f"Module {module_name!r} has no {what!r}: {nearest(what, known)}.")
    return getattr(module, what)


def _load_module(name: str) -> ModuleType:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ArgumentError(f"Cannot import {name!r}: {type(error).__name__}: {error}.") from error
    finally:
        sys.path.remove(here)


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ArgumentError(f"Cannot import {str(path)!r}: there is no such file.")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(path.stem)
    sys.modules[path.stem] = module  # where dataclasses and pickle look a class's module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[path.stem]
        raise ArgumentError(f"Cannot import {str(path)!r}: {type(error).__name__}: {error}.") from error
    finally:
        if before is not None:
            sys.modules[path.stem] = before
    return module
