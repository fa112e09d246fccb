"""Modes of modules: whether each part of one trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

Modes = list[tuple[nn.Module, bool]]


def modes_of(module: nn.Module) -> Modes:
    """The mode of each part of a module."""
    return [(part, part.training) for part in module.modules()]


def _set(modes: Modes) -> None:
    for part, training in modes:
        part.training = training


@contextmanager
def within(modes: Modes) -> Iterator[None]:
    """Within it parts of modules are in these modes; afterwards they are in those in which they were."""
    before = [(part, part.training) for part, _ in modes]
    try:
        _set(modes)
        yield
    finally:
        _set(before)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within it a module is in evaluation mode; afterwards each part of it is in the mode in which it was."""
    with within([(part, False) for part in module.modules()]):
        yield
