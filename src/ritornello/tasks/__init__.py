"""Tasks: data, model, loss and score of one job each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ritornello.errors import RunError, nearest


def load(path: str | Path, **options: Any) -> Any:
    """A trained model from its run folder, of whatever task. Executes nothing that the folder holds.

    Args:
        path: the folder.
        **options: as the task's own `load` takes them: `cell`, `device`.

    Raises:
        RunError: no such run, a damaged one, or one of another version or of an unknown task.
    """
    from ritornello.tasks import language_model, parse, tree
    from ritornello.training.run import Run

    loaders: dict[str, Any] = {task.EXPERIMENT.name: task.load for task in (language_model, tree, parse)}
    task = Run.open(path).config["task"]
    if task not in loaders:
        raise RunError(f"{path} holds the unknown task {task!r}: {nearest(task, loaders)}.")
    return loaders[task](path, **options)
