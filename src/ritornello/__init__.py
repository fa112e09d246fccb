"""ritornello: recurrent and recursive networks for PyTorch.

Names are loaded when first used (PEP 562), so that `import ritornello` costs nothing and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ritornello import (
        cells,
        data,
        engine,
        errors,
        executors,
        models,
        nn,
        pictures,
        program,
        structures,
        tasks,
        training,
    )
    from ritornello.cells import GRU, LSTM, Cell, Elman, total
    from ritornello.engine import Randomized, Truncated, Unfold, explain
    from ritornello.tasks import load

_HOMES = {
    "Cell": "cells",
    "Elman": "cells",
    "GRU": "cells",
    "LSTM": "cells",
    "Randomized": "engine",
    "Truncated": "engine",
    "Unfold": "engine",
    "explain": "engine",
    "load": "tasks",
    "total": "cells",
}
_MODULES = (
    *("cells", "data", "engine", "errors", "executors", "models"),
    *("nn", "pictures", "program", "structures", "tasks", "training"),
)

__all__ = [
    "GRU",
    "LSTM",
    "Cell",
    "Elman",
    "Randomized",
    "Truncated",
    "Unfold",
    "__version__",
    "cells",
    "data",
    "engine",
    "errors",
    "executors",
    "explain",
    "load",
    "models",
    "nn",
    "pictures",
    "program",
    "structures",
    "tasks",
    "total",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"ritornello.{_HOMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"ritornello.{name}")
    raise AttributeError(f"module 'ritornello' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
