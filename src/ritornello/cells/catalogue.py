"""The catalogue: which cells there are by name, and how a foreign one is found."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ritornello.cells.additive import AdditiveMemory
from ritornello.cells.cell import Cell
from ritornello.cells.coupled import CoupledLSTM
from ritornello.cells.deep import DeepTransition
from ritornello.cells.elman import Elman
from ritornello.cells.groups import GroupedRNN
from ritornello.cells.gru import GRU
from ritornello.cells.highway import RecurrentHighway
from ritornello.cells.irnn import IRNN
from ritornello.cells.jordan import ElmanJordan, Jordan
from ritornello.cells.layer_norm import LayerNormLSTM
from ritornello.cells.leaky import Leaky
from ritornello.cells.lru import LRU, RGLRU
from ritornello.cells.lstm import LSTM
from ritornello.cells.lstm_1997 import LSTM1997
from ritornello.cells.minimal import MinimalGatedUnit
from ritornello.cells.minimal_linear import MinGRU, MinLSTM
from ritornello.cells.multiplicative import MultiplicativeLSTM, MultiplicativeRNN, TensorRNN
from ritornello.cells.peephole import PeepholeLSTM
from ritornello.cells.projected import ProjectedLSTM
from ritornello.cells.qrnn import QRNN
from ritornello.cells.recursive import RecursiveNet, RecursiveTensorNet
from ritornello.cells.slstm import SLSTM
from ritornello.cells.sru import SRU
from ritornello.cells.tree_gru import TreeGRU
from ritornello.cells.tree_lstm import TreeLSTM
from ritornello.errors import ArgumentError, nearest

CELLS: dict[str, type[Cell]] = {
    "elman": Elman,
    "irnn": IRNN,
    "jordan": Jordan,
    "elman-jordan": ElmanJordan,
    "leaky": Leaky,
    "additive": AdditiveMemory,
    "groups": GroupedRNN,
    "lstm": LSTM,
    "lstm-1997": LSTM1997,
    "peephole": PeepholeLSTM,
    "coupled": CoupledLSTM,
    "projected": ProjectedLSTM,
    "layer-norm": LayerNormLSTM,
    "slstm": SLSTM,
    "gru": GRU,
    "minimal": MinimalGatedUnit,
    "tensor": TensorRNN,
    "multiplicative-rnn": MultiplicativeRNN,
    "multiplicative": MultiplicativeLSTM,
    "deep": DeepTransition,
    "highway": RecurrentHighway,
    "qrnn": QRNN,
    "sru": SRU,
    "min-gru": MinGRU,
    "min-lstm": MinLSTM,
    "lru": LRU,
    "rg-lru": RGLRU,
}

# For trees alone: they tell their children apart.
TREE_CELLS: dict[str, type[Cell]] = {
    "recursive": RecursiveNet,
    "recursive-tensor": RecursiveTensorNet,
    "tree-lstm": TreeLSTM,
    "tree-gru": TreeGRU,
}


def is_foreign(name: str) -> bool:
    """Whether `name` names a cell of the user's own, `module:Class` or `FILE.py:Class`.

    >>> is_foreign("lstm"), is_foreign("my_module:MyCell")
    (False, True)
    """
    return ":" in name


def find(name: str) -> Callable[..., nn.Module]:
    """The cell of that name: a class, or with options a function of (input_size, hidden_size) that makes one.

    Args:
        name: a name of the catalogue (`elman`, `gru`, `lstm`, ...), or `module:Class` or `FILE.py:Class` for a cell of
            your own, which is imported: the current folder is searched first. **Importing runs that module's code.**
            Options may follow in parentheses: `gru(reset=before)`, `groups(periods=(1, 4))`.

    Raises:
        ArgumentError: an unknown name or option, a module that cannot be imported, or a class that is not there or is
            no module.

    Example:
        >>> find("lstm").__name__
        'LSTM'
        >>> find("gru(reset=before)")(3, 4).reset
        'before'
    """
    plain, options = _options(name)
    if not is_foreign(plain):
        known_cells = CELLS | TREE_CELLS
        if plain not in known_cells:
            if plain.endswith(".py"):
                raise ArgumentError(f"{plain!r} names a file and no cell in it: write {plain}:Class.")
            raise ArgumentError(
                f"Unknown cell {plain!r}: {nearest(plain, known_cells)}; or name your own as module:Class or "
                "FILE.py:Class."
            )
        found: Any = known_cells[plain]
    else:
        found = imported(plain, _is_module)
        if not _is_module(found):
            raise ArgumentError(
                f"{plain!r} is a {type(found).__name__}, not a subclass of ritornello.Cell or torch.nn.Module."
            )
    known = list(inspect.signature(found).parameters)[2:]
    for option in options:
        if option not in known:
            raise ArgumentError(f"{plain} has no option {option!r}: {nearest(option, known)}.")
    return partial(found, **options) if options else found


def _options(name: str) -> tuple[str, dict[str, Any]]:
    """A name and the options behind it; words stand for themselves, but for true, false and none."""
    start = name.find("(", name.find(".py:") + 1)  # a file's own name may have parentheses
    if start < 0:
        return name, {}
    plain = name[:start]
    try:
        call = ast.parse(f"f{name[start:]}", mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args:
            return plain, {str(each.arg): _literal(each.value) for each in call.keywords}
    except (SyntaxError, ValueError, TypeError):
        pass  # told below
    raise ArgumentError(f"{name!r}: options are written as in gru(reset=before).")


def _literal(value: ast.expr) -> Any:
    if isinstance(value, ast.Name):
        return {"true": True, "false": False, "none": None}.get(value.id, value.id)
    return ast.literal_eval(value)


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
