"""Trees with labels: bracketed trees in, a model that labels every node of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ritornello.data.brackets import read_trees, write_trees
from ritornello.data.trees import Trees
from ritornello.data.vocabulary import Vocabulary
from ritornello.errors import ArgumentError, DataError, RunError
from ritornello.models.tree import SpanClassifier, TreeClassifier
from ritornello.structures import Forest
from ritornello.tasks.experiment import Experiment
from ritornello.tasks.tree_config import TreeModelConfig, TreesConfig, TreeTrainingConfig
from ritornello.tasks.tree_run import Reading, TreeModelRun, arranged, check_children, labelled, scores
from ritornello.tasks.treebank import PARTS, Shuffled, check_parts
from ritornello.training.display import Display
from ritornello.training.files import read_json, write_json
from ritornello.training.run import Run

MODELS: dict[str, type[TreeClassifier]] = {"tree": TreeClassifier, "sequence": SpanClassifier}


class Batch:
    """Trees that are computed side by side, and what their nodes are to be.

    Attributes:
        trees: their shapes.
        words: (leaves,) ids.
        nodes: numbers of those that have a label; None where all have one.
        labels: their classes.
    """

    def __init__(self, trees: Trees) -> None:
        self.trees: Forest = trees.forest
        self.words = torch.from_numpy(trees.words[trees.forest.leaves])
        self.nodes = labelled(trees)
        labels = torch.from_numpy(trees.labels)
        self.labels = labels if self.nodes is None else labels[self.nodes]


class TreeTask(Shuffled):
    """The cross-entropy of the labels of all nodes.

    Args:
        train, valid: trees with ids for words and classes for labels.
        batch: trees a batch.
        seed: of their order.
    """

    criterion = "valid_root_error"

    def __init__(self, train: Trees, valid: Trees, batch: int, seed: int) -> None:
        super().__init__(len(train), batch, seed)
        self.train, self.valid = train, valid

    def some(self, which: np.ndarray) -> Batch:
        return Batch(self.train[which])

    def loss(self, model: nn.Module, batch: Batch, carry: Any) -> tuple[Tensor, Any, int]:
        device, count = next(model.parameters()).device, max(len(batch.labels), 1)
        logits = model(batch.trees, batch.words.to(device), batch.nodes).float()
        return F.cross_entropy(logits, batch.labels.to(device), reduction="sum") / count, None, count

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        found = scores(model, self.valid)
        row = {f"valid_{name}": value for name, value in found.items() if name not in ("trees", "nodes")}
        return row | {"valid_root_error": 1 - found["root"]}


class TreeExperiment(Experiment[TreeModelRun]):
    """Reads trees, learns words and labels from the training part, and fits a model that labels nodes."""

    name = "tree"
    kinds: ClassVar = {"trees": TreesConfig, "model": TreeModelConfig, "training": TreeTrainingConfig}
    prepared = "labels.json"

    def accept(self, configs: Mapping[str, Any]) -> None:
        check_parts(configs["trees"])

    def prepare(self, run: Run, watch: Display | None) -> None:
        config = self.section(run, "trees")
        learnt = read_trees(config.train)
        write_trees(run.path / "train.txt", learnt)
        for part in PARTS[1:]:
            if paths := getattr(config, part):
                trees = read_trees(paths, label_names=None if config.classes else learnt.label_names)
                write_trees(run.path / f"{part}.txt", trees)
        named = {label for group in config.classes for label in group.split()}
        strange = sorted(named - set(learnt.label_names))
        if strange:
            labels = ", ".join(learnt.label_names)
            raise ArgumentError(f"classes names the label {strange[0]!r}; the trees have {labels}.")
        Vocabulary.learn(arranged(learnt, config).word_counts(), least=config.least).save(run.path / "vocabulary.json")
        write_json(run.path / "labels.json", list(learnt.label_names))

    def known(self, run: Run) -> Reading:
        labels = read_json(run.path / "labels.json")
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise RunError(f"{run.path / 'labels.json'} is damaged: it is no list of labels.")
        return Reading(self.section(run, "trees"), labels, Vocabulary.load(run.path / "vocabulary.json"))

    def task(self, run: Run, known: Reading) -> TreeTask:
        training = self.section(run, "training")
        train, valid = (known.files(run.path / f"{part}.txt") for part in ("train", "valid"))
        if not (train.labels >= 0).any():
            raise DataError("No node of the train part has a label that counts; see --classes.")
        if not (valid.labels[valid.forest.roots] >= 0).any():
            raise DataError("No root of the valid part has a label that counts, to judge by; see --classes.")
        return TreeTask(train, valid, training.batch, training.seed)

    def build(self, run: Run, known: Reading, cell: Callable[..., Any]) -> TreeClassifier:
        config = self.section(run, "model")
        return MODELS[config.model](
            len(known.vocabulary),
            len(known.classes),
            cell,
            embedding=config.embedding,
            hidden=config.hidden,
            layers=config.layers,
            dropout=config.dropout,
            sparse=self.section(run, "training").optimiser == "adagrad",
        )

    def step(self, run: Run, known: Reading, task: Any, model: nn.Module) -> None:
        parts = {"train": task.train, "valid": task.valid}
        if (run.path / "test.txt").exists():
            parts["test"] = known.files(run.path / "test.txt")
        for part, trees in parts.items():
            check_children(model, trees, f" of the {part} part")
        super().step(run, known, task, model)

    def use(self, run: Run, model: TreeClassifier, known: Reading) -> TreeModelRun:
        return TreeModelRun(run, model, known)


EXPERIMENT = TreeExperiment()
resume, load = EXPERIMENT.resume, EXPERIMENT.load


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
    return EXPERIMENT.train(out, options, overwrite=overwrite, watch=watch)
