"""One kind of run from its options to a model in use: what all tasks share."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import nn

from ritornello.cells import catalogue
from ritornello.errors import ArgumentError, CellError, RitornelloError, RunError, nearest
from ritornello.processor import has_bfloat16
from ritornello.training.config import BUDGETS, from_json
from ritornello.training.display import Display
from ritornello.training.files import load_weights, read_tensors
from ritornello.training.loop import Task
from ritornello.training.loop import train as train_loop
from ritornello.training.run import Run, alone

Kinds = Mapping[str, type]  # the sections of a task's configuration, and the dataclass of each
_log = logging.getLogger("ritornello")
Found = TypeVar("Found")  # the model in use


class Experiment(Generic[Found]):
    """How runs of one task are made, gone on with and opened. A task writes the methods that come first.

    Attributes:
        name: of the task, as run folders hold it.
        kinds: its configuration, with the sections "model", which names a cell, and "training".
        prepared: the file of a run's folder that is written last when the data are read.
    """

    name: ClassVar[str]
    kinds: ClassVar[Kinds]
    prepared: ClassVar[str]

    def accept(self, configs: Mapping[str, Any]) -> None:
        """Raises ArgumentError where options do not do together, before anything is read or made."""

    def prepare(self, run: Run, watch: Display | None) -> None:
        """Reads the data into the run's folder."""
        raise NotImplementedError

    def known(self, run: Run) -> Any:
        """What is known of the run's data once they are read, such as a vocabulary."""
        raise NotImplementedError

    def task(self, run: Run, known: Any) -> Task:
        """What training asks for."""
        raise NotImplementedError

    def build(self, run: Run, known: Any, cell: Callable[..., Any]) -> nn.Module:
        """The model, with its first weights."""
        raise NotImplementedError

    def begin(self, task: Any, model: Any) -> None:
        """Sets those of the model's first weights that hang on the data."""

    def use(self, run: Run, model: Any, known: Any) -> Found:
        """The trained model in use."""
        raise NotImplementedError

    def train(
        self, out: str | Path, options: dict[str, Any], *, overwrite: bool = False, watch: Display | None = None
    ) -> Found:
        """Trains a model and keeps it in a run folder: see the `train` of each task."""
        cell = options.get("cell")
        if isinstance(cell, type):
            options = options | {"cell": name_of(cell)}
        configs = settle(self.kinds, options)
        cell_class = cell if isinstance(cell, type) else catalogue.find(configs["model"].cell)
        check_device(configs["training"].device)
        self.accept(configs)
        sections = {name: asdict(config) for name, config in configs.items()}
        with Run.prepare(out, self.name, sections, overwrite=overwrite) as run:
            self.prepare(run, watch)
            self.check(run, cell_class)
        with alone(Path(out)):
            return self.fit(run.moved(out), cell_class, watch, resume=False)

    def resume(
        self,
        out: str | Path,
        *,
        cell: str | type | None = None,
        given: Mapping[str, Any] | None = None,
        watch: Display | None = None,
    ) -> Found:
        """Goes on with a run that was stopped, with its own options and data, exactly as if it had not been.

        Args:
            out: the run's folder.
            cell: the run's foreign cell, named again (or its class); see `load`.
            given: options as `train` takes them; they must be the run's own, but for more of its budget (the learning
                rate then follows the new one from where it is), threads, and device.
            watch: as in `train`.

        Raises:
            RunError: no such run, a damaged one, one with a foreign cell that is not named, or one that another
                process is training. DataError: its data are gone and were not read yet. ArgumentError: an option that
                is not the run's own.
        """
        given = dict(given or {})
        named = given.pop("cell", None)
        with Run.reopen(out, self.name) as run:
            cell_class = cell_of(run, self.section(run, "model").cell, cell or named)
            check_device((given or {}).get("device", self.section(run, "training").device))
            change(run, self.kinds, given, out)
            if not (run.path / self.prepared).exists():
                self.prepare(run, watch)
                self.check(run, cell_class)
        with alone(Path(out)):
            return self.fit(run.moved(out), cell_class, watch, resume=True)

    def load(self, path: str | Path, *, cell: str | type | None = None, device: str = "cpu") -> Found:
        """A trained model from its run folder. Executes nothing that the folder holds.

        Args:
            path: the folder.
            cell: where the run was trained with a cell of somebody's own, its name again, `module:Class` or
                `FILE.py:Class`, or its class: only what you name is imported.
            device: where to put the model.

        Raises:
            RunError: no such run, or one that is damaged, unfinished, of another version or task, or with a foreign
                cell that is not named.
        """
        run = Run.open(path, self.name)
        check_device(device)
        cell_class = cell_of(run, self.section(run, "model").cell, cell)
        known = self.known(run)
        return self.use(run, self.best(run, self.build(run, known, cell_class)).to(device), known)

    def section(self, run: Run, name: str) -> Any:
        """One of the run's configurations, checked."""
        return section(run, self.kinds, name)

    def check(self, run: Run, cell: Callable[..., Any]) -> None:
        """Sees whether data, sizes and cell fit together.

        Raises:
            CellError: whatever a cell of the user's own raises; errors that say themselves what is wrong go on.
        """
        known = self.known(run)
        task = self.task(run, known)
        try:
            with torch.no_grad():
                self.step(run, known, task, self.build(run, known, cell).to(self.section(run, "training").device))
        except RitornelloError:
            raise
        except Exception as error:
            name = self.section(run, "model").cell
            raise CellError(
                f"The cell {name!r} could not be made, or make its first steps: {type(error).__name__}: {error}"
            ) from error

    def step(self, run: Run, known: Any, task: Task, model: nn.Module) -> None:
        """The model's first steps."""
        task.loss(model, next(task.batches(0, 0)), None)

    def fit(self, run: Run, cell: Callable[..., Any], watch: Display | None, *, resume: bool) -> Found:
        """Trains on a prepared run."""
        config, known = self.section(run, "training"), self.known(run)
        task, threads = self.task(run, known), torch.get_num_threads()
        torch.manual_seed(config.seed)
        model = self.build(run, known, cell)
        if not run.checkpoint_file.exists():
            self.begin(task, model)
        model.to(config.device)
        if config.precision == "bfloat16" and config.device == "cpu" and not has_bfloat16():
            _log.warning("This processor has no instructions for bfloat16, so that float32 is faster.")
        torch.set_num_threads(config.threads or threads)
        try:
            _, interrupted = train_loop(task, model, config, run, resume=resume, watch=watch)
        finally:
            torch.set_num_threads(threads)
        found: Any = self.use(run, self.best(run, model), known)
        found.interrupted = interrupted
        if interrupted and watch is None:
            _log.warning("Stopped by Ctrl-C; all is kept in %s, and resume goes on from it.", run.path)
        return found

    @staticmethod
    def best(run: Run, model: nn.Module) -> nn.Module:
        """The model with the weights that the run keeps, ready for use."""
        load_weights(model, read_tensors(run.model_file)[0], run.model_file)
        return model.eval()


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


def change(run: Run, kinds: Kinds, given: Mapping[str, Any], out: Any) -> None:
    """Gives a run what may become another when it goes on.

    Raises:
        ArgumentError: another option that is not the run's own.
    """
    changed: dict[str, Any] = {}
    for name, config in settle(kinds, given).items():
        for option in set(given) & {field.name for field in fields(config)}:
            asked, own = getattr(config, option), getattr(section(run, kinds, name), option)
            if asked == own:
                continue
            if option in BUDGETS and not own:
                kind = next(each for each in BUDGETS if getattr(section(run, kinds, name), each))
                raise ArgumentError(f"{out} has a budget in {kind}; give more of these, --{kind}, not {option}.")
            if option not in ("threads", "device") and not (option in BUDGETS and asked > own):
                raise ArgumentError(f"{option} is {own!r} in {out} and cannot become {asked!r}; leave it out.")
            changed[option] = asked
    if changed:
        run.rewrite({**run.config, "training": {**run.section("training"), **changed}})


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
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ArgumentError(f"Device {device!r} cannot be used here: {reason}") from error
