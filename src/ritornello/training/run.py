"""A run: the folder of a trained model, with all that is needed to use it and to go on training it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ritornello import __version__
from ritornello.errors import RunError
from ritornello.training.files import read_json, write_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMAT = 1


class Run:
    """A run folder.

    Holds `config.json` (what was asked for), `model.safetensors` (the best weights so far), `checkpoint.safetensors`
    (all that an exact resume needs), `metrics.jsonl` (an object an evaluation), `tensorboard/` (the same as events),
    and what its task adds (`tokenizer.json`, `tokens/`). Nothing in it is ever unpickled.

    Attributes:
        path: the folder.
        config: `config.json` as a mapping, with the keys ritornello, format, task and those of the task.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path = path
        self.config = config

    @classmethod
    @contextlib.contextmanager
    def prepare(
        cls, path: str | Path, task: str, config: Mapping[str, Any], *, overwrite: bool = False
    ) -> Iterator[Run]:
        """Within it a new run is made beside its place; then it takes its place whole, or, on an error, vanishes.

        Raises:
            RunError: the folder holds something already; with `overwrite` only if that is no run, or one that another
                process is at work on.
        """
        path = Path(path)
        _check_free(path, overwrite)
        making, old = _beside(path, "new"), _beside(path, "old")
        for folder in (path, making):
            if folder.is_dir():
                with alone(folder, path):
                    pass
        try:
            shutil.rmtree(making, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
            making.mkdir(parents=True)
        except OSError as error:
            raise RunError(f"Cannot make {path}: {error.strerror or error}.") from error
        config = {"ritornello": __version__, "format": FORMAT, "task": task, **config}
        with alone(making, path):
            write_json(making / "config.json", config)
            try:
                yield cls(making, config)
            except Exception:
                shutil.rmtree(making)
                raise
            if path.exists():
                path.rename(old)  # at once: a kill leaves a whole run there, or the new one beside it for `reopen`
            making.rename(path)
        shutil.rmtree(old, ignore_errors=True)

    @classmethod
    @contextlib.contextmanager
    def reopen(cls, path: str | Path, task: str) -> Iterator[Run]:
        """Opens a run to go on with, one that was stopped while it was made too; that takes its place at the end.

        Raises:
            RunError: as `open`, or another process is at work on it.
        """
        path = Path(path)
        making = _beside(path, "new")
        unmade = _is_free(path) and (making / "config.json").is_file()
        run = cls.open(making if unmade else path, task)
        with alone(run.path, path):
            yield run
            if unmade:
                making.rename(path)

    def moved(self, path: str | Path) -> Run:
        """The same run in its place."""
        return Run(Path(path), self.config)

    @classmethod
    def open(cls, path: str | Path, task: str = "") -> Run:
        """Opens a run that exists, of that task if one is named.

        Raises:
            RunError: no such folder, no run, damaged, written by another version, or of another task.
        """
        path = Path(path)
        if not path.is_dir():
            raise RunError(f"There is no run {path}; rit train makes one.")
        if not (path / "config.json").is_file():
            raise RunError(f"{path} is no run: it has no config.json.")
        config = read_json(path / "config.json")
        if not isinstance(config, dict) or "format" not in config or not isinstance(config.get("task"), str):
            raise RunError(f"{path / 'config.json'} is no run's configuration: it lacks the keys format and task.")
        if config["format"] != FORMAT:
            raise RunError(
                f"{path} has format {config['format']!r}, written by ritornello {config.get('ritornello', '?')}; "
                f"ritornello {__version__} reads format {FORMAT}."
            )
        if task and config["task"] != task:
            raise RunError(f"{path} holds the task {config['task']!r}; expected {task!r}.")
        return cls(path, config)

    def rewrite(self, config: Mapping[str, Any]) -> None:
        """Gives the run another configuration."""
        write_json(self.path / "config.json", config)
        self.config = config

    def section(self, name: str) -> dict[str, Any]:
        """One of the task's parts of the configuration.

        Raises:
            RunError: the configuration lacks it.
        """
        value = self.config.get(name)
        if not isinstance(value, dict):
            raise RunError(f"{self.path / 'config.json'} lacks the section {name!r}; it was cut or edited.")
        return value

    @property
    def model_file(self) -> Path:
        """The best weights so far."""
        return self.path / "model.safetensors"

    @property
    def checkpoint_file(self) -> Path:
        """All that an exact resume needs."""
        return self.path / "checkpoint.safetensors"

    @property
    def metrics_file(self) -> Path:
        """An object an evaluation."""
        return self.path / "metrics.jsonl"

    def metrics(self) -> list[dict[str, Any]]:
        """The evaluations so far, oldest first. A last line that a kill cut short is left out."""
        if not self.metrics_file.is_file():
            return []
        lines = self.metrics_file.read_bytes().split(b"\n")[:-1]
        try:
            rows = [json.loads(line) for line in lines]
        except ValueError as error:
            raise RunError(f"{self.metrics_file} is damaged: {error}.") from error
        if not all(isinstance(row, dict) and {"step", "valid_loss"} <= row.keys() for row in rows):
            raise RunError(f"{self.metrics_file} is damaged: a line is no object with step and valid_loss.")
        return rows


@contextlib.contextmanager
def alone(folder: Path, name: Path | None = None) -> Iterator[None]:
    """Within it no other process is at work on this run; one that is killed is not, either.

    Windows, and file systems without locks, let all in.

    Raises:
        RunError: another one is, telling the run's name.
    """
    if fcntl is None:
        yield
        return
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"Another process is training {name or folder}: wait for its end, or stop it.") from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):  # the last is NFS's
                raise
        yield
    finally:
        os.close(held)


def _beside(path: Path, what: str) -> Path:
    """Where a run is made before it takes its place, or goes before it is deleted."""
    if path.name in ("", ".."):
        raise RunError(f"{str(path)!r} has no name of its own; name a folder for the run with --out.")
    return path.with_name(f".{path.name}.{what}")


def _is_free(path: Path) -> bool:
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def _check_free(path: Path, overwrite: bool) -> None:
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file; name a folder for the run.")
    if _is_free(path):
        return
    if not (path / "config.json").is_file():
        raise RunError(f"{path} holds files that are no run; name another folder with --out.")
    if not overwrite:
        raise RunError(
            f"{path} holds a run already; go on with --resume, replace it with --overwrite, or name another folder "
            "with --out (in Python: resume, overwrite=True, another path)."
        )
