"""Training: the loop, optimisers, checkpoints, logs, and the run folder that keeps them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ritornello.training.config import TrainingConfig
    from ritornello.training.display import Display
    from ritornello.training.loop import train
    from ritornello.training.run import Run

_HOMES = {"TrainingConfig": "config", "Display": "display", "train": "loop", "Run": "run"}

__all__ = ["Display", "Run", "TrainingConfig", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ritornello.training' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ritornello.training.{_HOMES[name]}"), name)
