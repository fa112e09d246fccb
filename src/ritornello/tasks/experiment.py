"""What all tasks do with their options and with the cell that a run was trained with."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch

from ritornello.cells import catalogue
from ritornello.errors import ArgumentError, CellError, RitornelloError, RunError, nearest
from ritornello.training.config import from_json
from ritornello.training.run import Run

Kinds = Mapping[str, type]  # the sections of a task's configuration, and the dataclass of each


def settle(kinds: Kinds, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, each in the section where it belongs.

    Raises:
        ArgumentError: an unknown one, or a value that does not fit.
    """
    homes = {field.name: name for name, kind in kinds.items() for field in fields(kind)}
    parts: dict[str, dict[str, Any]] = {name: {} for name in kinds}
    for name, value in options.items():
        if name not in homes:
            raise ArgumentError(f"Unknown option {name!r}: {nearest(name, homes)}.")
        parts[homes[name]][name] = value
    return {name: kind(**parts[name]) for name, kind in kinds.items()}


def section(run: Run, kinds: Kinds, name: str) -> Any:
    """One of the run's configurations, checked."""
    return from_json(kinds[name], run.section(name), f"{run.path / 'config.json'}, section {name!r},")


def check_given(run: Run, kinds: Kinds, given: Mapping[str, Any], out: Any) -> None:
    """Raises ArgumentError unless options named again are the run's own."""
    for name, config in settle(kinds, given).items():
        for option in set(given) & {field.name for field in fields(config)}:
            asked, own = getattr(config, option), getattr(section(run, kinds, name), option)
            if asked != own:
                raise ArgumentError(f"{option} is {own!r} in {out} and cannot become {asked!r}; leave it out.")


def check_task(run: Run, task: str) -> None:
    """Raises RunError unless the run is one of that task."""
    if run.config["task"] != task:
        raise RunError(f"{run.path} holds the task {run.config['task']!r}; expected {task!r}.")


def cell_of(run: Run, own: str, named: str | type | None) -> Callable[..., Any]:
    """The run's cell; a foreign one only if the caller names it too."""
    if named is None:
        if catalogue.is_foreign(own):
            raise RunError(
                f"{run.path} was trained with the foreign cell {own!r}, whose code is run only if you ask for it: "
                f"name it again with --cell {shlex.quote(own)} (in Python, cell={own!r})."
            )
        return catalogue.find(own)
    name = named if isinstance(named, str) else name_of(named)
    if name.rpartition(":")[2] != own.rpartition(":")[2]:  # its module may be called otherwise from here
        raise RunError(f"{run.path} was trained with the cell {own!r}, not {name!r}.")
    return catalogue.find(named) if isinstance(named, str) else named


def name_of(cell: type) -> str:
    """What a configuration calls a class of cell."""
    known = (name for name, kind in (catalogue.CELLS | catalogue.TREE_CELLS).items() if kind is cell)
    return next(known, f"{cell.__module__}:{cell.__qualname__}")


def check_device(device: str) -> None:
    """Raises ArgumentError unless tensors can lie there."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ArgumentError(f"Device {device!r} cannot be used here: {reason}") from error


def check_steps(cell: str, steps: Callable[[], Any]) -> None:
    """Takes a model's first steps without gradients.

    Raises:
        CellError: whatever a cell of the user's own raises; errors that say themselves what is wrong go on.
    """
    try:
        with torch.no_grad():
            steps()
    except RitornelloError:
        raise
    except Exception as error:
        raise CellError(
            f"The cell {cell!r} could not be made, or make its first steps: {type(error).__name__}: {error}"
        ) from error
