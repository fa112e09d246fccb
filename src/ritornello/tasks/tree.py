"""Trees with labels: bracketed trees in, a model that labels every node of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ritornello.cells import catalogue
from ritornello.data.brackets import read_trees, write_trees
from ritornello.data.trees import Trees
from ritornello.data.vocabulary import Vocabulary
from ritornello.errors import ArgumentError, DataError, RunError
from ritornello.models.tree import SpanClassifier, TreeClassifier
from ritornello.structures import Forest
from ritornello.tasks.experiment import (
    cell_of,
    check_device,
    check_given,
    check_steps,
    check_task,
    name_of,
    section,
    settle,
)
from ritornello.tasks.tree_config import TreeModelConfig, TreesConfig, TreeTrainingConfig
from ritornello.tasks.tree_run import PARTS, Reading, TreeModelRun, arranged, check_children, scores
from ritornello.training.display import Display
from ritornello.training.files import load_weights, read_json, read_tensors, write_json
from ritornello.training.loop import train as train_loop
from ritornello.training.run import Run

TASK = "tree"
CONFIGS = {"trees": TreesConfig, "model": TreeModelConfig, "training": TreeTrainingConfig}
MODELS: dict[str, type[TreeClassifier]] = {"tree": TreeClassifier, "sequence": SpanClassifier}


class Batch:
    """Trees that are computed side by side, and what their nodes are to be.

    Attributes:
        trees: their shapes.
        words: (leaves,) ids.
        labels: (nodes,) classes; -1 where a node has none.
    """

    def __init__(self, trees: Trees) -> None:
        self.trees: Forest = trees.forest
        self.words = torch.from_numpy(trees.words[trees.forest.leaves])
        self.labels = torch.from_numpy(trees.labels)


class TreeTask:
    """Trees in an order that is drawn anew for each epoch, and the cross-entropy of the labels of all their nodes.

    Args:
        train, valid: with ids for words and classes for labels.
        batch: trees a batch.
        seed: of the order.
    """

    criterion = "valid_root_error"

    def __init__(self, train: Trees, valid: Trees, batch: int, seed: int) -> None:
        self.train, self.valid, self.batch, self.seed = train, valid, batch, seed

    def windows(self) -> int:
        return -(-len(self.train) // self.batch)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.train))
        for number in range(start, self.windows()):
            yield Batch(self.train[order[number * self.batch : (number + 1) * self.batch]])

    def loss(self, model: nn.Module, batch: Batch, carry: Any) -> tuple[Tensor, Any, int]:
        device = next(model.parameters()).device
        labels = batch.labels.to(device)
        logits = model(batch.trees, batch.words.to(device)).float()
        known = int((labels >= 0).sum())
        return F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum") / max(known, 1), None, max(known, 1)

    def blank(self, model: nn.Module) -> None:
        return None

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        found = scores(model, self.valid)
        row = {f"valid_{name}": value for name, value in found.items() if name not in ("trees", "nodes")}
        return row | {"valid_root_error": 1 - found["root"]}


def train(out: str | Path, *, overwrite: bool = False, watch: Display | None = None, **options: Any) -> TreeModelRun:
    """Trains a model that labels the nodes of trees, and keeps it in a run folder.

    Args:
        out: the folder; it appears when the trees are read and everything fits.
        overwrite: replace the run that is there.
        watch: shows training, such as `ritornello.training.Display()`. Default: nothing is shown.
        **options: fields of `TreesConfig`, `TreeModelConfig` and `TreeTrainingConfig` by name; all but `train` and
            `valid` have defaults. `cell` may be a class.

    Returns:
        The trained model, with the weights that labelled most roots of the validation part rightly.

    Raises:
        ArgumentError, DataError, RunError: an option, a tree or a folder that does not fit.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = Path(folder.name, "trees.txt")
        >>> _ = path.write_text("(1 (1 good) (1 film))\\n(0 (0 not) (1 (1 good) (1 film)))\\n" * 20)
        >>> run = train(f"{folder.name}/run", train=path, valid=path, epochs=5, batch=4, hidden=8, embedding=8)
        >>> run.predict("(not (good film))")
        ['(0 (0 not) (1 (1 good) (1 film)))']
        >>> folder.cleanup()
    """
    cell = options.get("cell")
    if isinstance(cell, type):
        options["cell"] = name_of(cell)
    configs = settle(CONFIGS, options)
    config = configs["model"]
    cell_class = cell if isinstance(cell, type) else catalogue.find(config.cell)
    for part, what in (("train", "learn from"), ("valid", "be judged by")):
        if not getattr(configs["trees"], part):
            raise ArgumentError(f"There are no trees to {what}: name files of them with --{part}.")
    check_device(configs["training"].device)
    with Run.prepare(out, TASK, {name: asdict(config) for name, config in configs.items()}, overwrite=overwrite) as run:
        _prepare(run)
        _try(run, cell_class)
    return _fit(run.moved(out), cell_class, watch, resume=False)


def resume(
    out: str | Path,
    *,
    cell: str | type | None = None,
    given: Mapping[str, Any] | None = None,
    watch: Display | None = None,
) -> TreeModelRun:
    """Goes on with a run that was stopped, with its own options and trees, exactly as if it had not been.

    Args:
        out: the run's folder.
        cell: the run's foreign cell, named again (or its class); see `load`.
        given: options as `train` takes them; they must be the run's own.
        watch: as in `train`.

    Raises:
        RunError: no such run, a damaged one, or one with a foreign cell that is not named. ArgumentError: an option
            that is not the run's own.
    """
    given = dict(given or {})
    with Run.reopen(out, TASK) as run:
        cell_class = cell_of(run, _section(run, "model").cell, cell or given.pop("cell", None))
        check_device(_section(run, "training").device)
        check_given(run, CONFIGS, given, out)
        if not (run.path / "labels.json").exists():
            _prepare(run)
            _try(run, cell_class)
    return _fit(run.moved(out), cell_class, watch, resume=True)


def load(path: str | Path, *, cell: str | type | None = None, device: str = "cpu") -> TreeModelRun:
    """A trained model of trees from its run folder. Executes nothing that the folder holds.

    Args:
        path: the folder.
        cell: where the run was trained with a cell of somebody's own, its name again, `module:Class` or
            `FILE.py:Class`, or its class: only what you name is imported.
        device: where to put the model.

    Raises:
        RunError: no such run, or one that is damaged, unfinished, of another version, or with a foreign cell that is
            not named.
    """
    run = Run.open(path)
    check_task(run, TASK)
    check_device(device)
    return _trained(run, cell_of(run, _section(run, "model").cell, cell), device)


def _section(run: Run, name: str) -> Any:
    return section(run, CONFIGS, name)


def _prepare(run: Run) -> None:
    """Reads the run's trees into its folder, and learns words and labels from the training part."""
    config = _section(run, "trees")
    learnt = read_trees(config.train)
    write_trees(run.path / "train.txt", learnt)
    for part in PARTS[1:]:
        if paths := getattr(config, part):
            trees = read_trees(paths, label_names=None if config.classes else learnt.label_names)
            write_trees(run.path / f"{part}.txt", trees)
    named = {label for group in config.classes for label in group.split()}
    strange = sorted(named - set(learnt.label_names))
    if strange:
        raise ArgumentError(f"classes names the label {strange[0]!r}; the trees have {', '.join(learnt.label_names)}.")
    Vocabulary.learn(arranged(learnt, config).word_counts(), least=config.least).save(run.path / "vocabulary.json")
    write_json(run.path / "labels.json", list(learnt.label_names))


def _reading(run: Run) -> Reading:
    labels = read_json(run.path / "labels.json")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise RunError(f"{run.path / 'labels.json'} is damaged: it is no list of labels.")
    return Reading(_section(run, "trees"), labels, Vocabulary.load(run.path / "vocabulary.json"))


def _build(run: Run, read: Reading, cell: Callable[..., Any]) -> TreeClassifier:
    config = _section(run, "model")
    return MODELS[config.model](
        len(read.vocabulary),
        len(read.classes),
        cell,
        embedding=config.embedding,
        hidden=config.hidden,
        dropout=config.dropout,
        sparse=_section(run, "training").optimiser == "adagrad",
    )


def _task(run: Run, read: Reading) -> TreeTask:
    training = _section(run, "training")
    train, valid = (read.files(run.path / f"{part}.txt") for part in ("train", "valid"))
    if not (train.labels >= 0).any():
        raise DataError("No node of the train part has a label that counts; see --classes.")
    if not (valid.labels[valid.forest.roots] >= 0).any():
        raise DataError("No root of the valid part has a label that counts, to judge by; see --classes.")
    return TreeTask(train, valid, training.batch, training.seed)


def _try(run: Run, cell: Callable[..., Any]) -> None:
    """Sees whether trees, sizes and cell fit together."""
    read = _reading(run)
    task = _task(run, read)
    parts = {"train": task.train, "valid": task.valid}
    if (run.path / "test.txt").exists():
        parts["test"] = read.files(run.path / "test.txt")

    def steps() -> None:
        model = _build(run, read, cell).to(_section(run, "training").device)
        for part, trees in parts.items():
            check_children(model, trees, f" of the {part} part")
        task.loss(model, next(task.batches(0, 0)), None)

    check_steps(_section(run, "model").cell, steps)


def _fit(run: Run, cell: Callable[..., Any], watch: Display | None, *, resume: bool) -> TreeModelRun:
    """Trains on a prepared run."""
    config, read = _section(run, "training"), _reading(run)
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    model = _build(run, read, cell).to(config.device)
    _, interrupted = train_loop(_task(run, read), model, config, run, resume=resume, watch=watch)
    found = _trained(run, cell, config.device)
    found.interrupted = interrupted
    return found


def _trained(run: Run, cell: Callable[..., Any], device: str) -> TreeModelRun:
    """The run with the weights that it keeps."""
    read = _reading(run)
    model = _build(run, read, cell)
    load_weights(model, read_tensors(run.model_file)[0], run.model_file)
    return TreeModelRun(run, model.eval().to(device), read)
