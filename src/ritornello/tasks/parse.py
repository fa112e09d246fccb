"""Parsing: bracketed trees in, a model that puts other sentences into brackets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ritornello.cells import catalogue
from ritornello.data.brackets import format_trees, read_trees, write_trees
from ritornello.data.trees import Trees
from ritornello.data.vocabulary import Vocabulary
from ritornello.errors import ArgumentError, DataError
from ritornello.models.merging import Instances
from ritornello.models.parser import SentenceParser, bracket_f1, branching, groups_of
from ritornello.structures import Forest, preorder
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
from ritornello.tasks.parse_config import ParserConfig, ParserTrainingConfig, TreebankConfig
from ritornello.training.display import Display
from ritornello.training.files import load_weights, read_tensors
from ritornello.training.loop import train as train_loop
from ritornello.training.run import Run

TASK = "parse"
CONFIGS = {"treebank": TreebankConfig, "model": ParserConfig, "training": ParserTrainingConfig}
PARTS = ("train", "valid", "test")
SIDE_BY_SIDE = 128


class Sentences(NamedTuple):
    """Sentences and their trees, of two children a node.

    Attributes:
        trees: nodes in the order of opening brackets.
        words: (words,) ids, sentence after sentence.
        sizes: (sentences,) words of each.
        groups: of `Instances`.
    """

    trees: Forest
    words: np.ndarray
    sizes: np.ndarray
    groups: list[np.ndarray]

    @classmethod
    def of(cls, trees: Trees, vocabulary: Vocabulary) -> Sentences:
        forest = trees.forest
        sizes = np.bincount(forest.tree_of[forest.leaves], minlength=len(forest))
        return cls(forest, trees.encoded(vocabulary).words[forest.leaves], sizes, groups_of(forest))

    def some(self, which: np.ndarray) -> Batch:
        starts = self.sizes.cumsum() - self.sizes
        places = np.concatenate([np.arange(starts[k], starts[k] + self.sizes[k]) for k in which])
        instances = Instances.lines(self.sizes[which], [self.groups[k] for k in which])
        return Batch(self.trees[which], torch.from_numpy(self.words[places]), instances)


class Batch(NamedTuple):
    """Some sentences: their right trees, words, and what is to be merged."""

    trees: Forest
    words: Tensor
    instances: Instances


class ParseTask:
    """Sentences in an order that is drawn anew for each epoch, and the margins of their trees.

    Args:
        train, valid: sentences.
        batch: how many are trained side by side.
        seed: of the order.
        config: of the model, for its search and its margin.
    """

    criterion = "valid_error"

    def __init__(self, train: Sentences, valid: Sentences, batch: int, seed: int, config: ParserConfig) -> None:
        self.train, self.valid, self.batch, self.seed, self.config = train, valid, batch, seed, config

    def windows(self) -> int:
        return -(-len(self.train.sizes) // self.batch)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.train.sizes))
        for number in range(start, self.windows()):
            yield self.train.some(order[number * self.batch : (number + 1) * self.batch])

    def loss(self, model: nn.Module, batch: Batch, carry: Any) -> tuple[Tensor, Any, int]:
        return self._margins(model, batch).mean(), None, len(batch.instances.sizes)

    def _margins(self, model: Any, batch: Batch) -> Tensor:
        features = model.features(batch.words.to(next(model.parameters()).device), batch.instances.sizes)
        config = self.config
        return model.margin(batch.instances, features, config.margin, batch.trees, config.search, config.width)

    def blank(self, model: nn.Module) -> None:
        return None

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        total, count = 0.0, len(self.valid.sizes)
        with torch.no_grad():
            for start in range(0, count, SIDE_BY_SIDE):
                batch = self.valid.some(np.arange(start, min(start + SIDE_BY_SIDE, count)))
                total += float(self._margins(model, batch).sum())
        f1 = bracket_f1(parsed(model, self.valid.words, self.valid.sizes, self.config), self.valid.trees)
        return {"valid_loss": total / count, "valid_f1": f1, "valid_error": 1 - f1}


def parsed(model: Any, words: np.ndarray, sizes: np.ndarray, config: ParserConfig) -> Forest:
    """The trees that a model finds, nodes in the order of opening brackets."""
    found, starts = [], np.append(0, sizes.cumsum())
    device = next(model.parameters()).device
    with torch.no_grad():
        for start in range(0, len(sizes), SIDE_BY_SIDE):
            stop = min(start + SIDE_BY_SIDE, len(sizes))
            own = torch.from_numpy(words[starts[start] : starts[stop]]).to(device)
            features = model.features(own, sizes[start:stop])
            trees = model.search(Instances.lines(sizes[start:stop]), features, config.search, config.width).trees
            found.append(Forest.from_depths(preorder(trees)[1]))
    return Forest.concatenate(found)


class ParserRun:
    """A trained parser: puts sentences into brackets and is scored. Made by `train` or `ritornello.load`.

    Attributes:
        run: its folder and configuration.
        model: the network.
        vocabulary: the words that it knows.
        interrupted: whether Ctrl-C ended its training early.
        columns: the heading and format of each score.
        scoring: the options of `evaluate`.
    """

    columns: ClassVar[dict[str, tuple[str, str]]] = {
        "f1": ("bracket F1", ".1%"),
        "right": ("right-branching", ".1%"),
        "left": ("left-branching", ".1%"),
        "balanced": ("balanced", ".1%"),
        "sentences": ("sentences", ",.0f"),
    }
    scoring: ClassVar[tuple[str, ...]] = ()

    def __init__(self, run: Run, model: SentenceParser, vocabulary: Vocabulary) -> None:
        self.run, self.model, self.vocabulary = run, model, vocabulary
        self.interrupted = False

    def parts(self) -> list[str]:
        """Which parts of the run's own trees there are."""
        return [part for part in PARTS if (self.run.path / f"{part}.txt").exists()]

    def evaluate(self, trees: str | Path | Sequence[str | Path]) -> dict[str, float]:
        """Scores files or folders of trees, or a part of the run's own.

        Args:
            trees: paths, or "train", "valid" or "test".

        Returns:
            f1, of all brackets of two words or more but for whole sentences; beside it that of trees that know nothing
            of the words: right, left and balanced; and how many sentences there were.

        Raises:
            DataError: a file that is missing or malformed, or without a sentence that is short enough.
        """
        if isinstance(trees, str) and trees in PARTS:
            if trees not in self.parts():
                raise DataError(f"{self.run.path} has no {trees} part; it has {', '.join(self.parts())}.")
            read = read_trees(self.run.path / f"{trees}.txt", labelled=False)
        else:
            read = _short(trees, _section(self.run, "treebank"))
        data = Sentences.of(read, self.vocabulary)
        found = bracket_f1(parsed(self.model, data.words, data.sizes, _section(self.run, "model")), data.trees)
        others = {how: bracket_f1(branching(data.sizes, how), data.trees) for how in ("right", "left", "balanced")}
        return {"f1": found, **others, "sentences": len(data.sizes)}

    def predict(self, text: str) -> list[str]:
        """Puts sentences into brackets.

        Args:
            text: a sentence a line, words between spaces; brackets, and what stands in them, are taken as words.

        Returns:
            A tree a line, of unlabelled brackets; see the example of `train`.

        Raises:
            DataError: no word at all.
        """
        return format_trees(self.answer(text)[0])

    def answer(self, text: str, source: str = "text") -> tuple[Trees, None]:
        """The trees themselves, with no probabilities; `source` is what errors call the text."""
        sentences = [line.split() for line in text.splitlines() if line.split()]
        if not sentences:
            raise DataError(f"{source}: there is no word to put into brackets.")
        sizes = np.array([len(words) for words in sentences])
        ids = self.vocabulary.ids([word for words in sentences for word in words])
        forest = parsed(self.model, ids, sizes, _section(self.run, "model"))
        words = np.full(forest.nodes, -1)
        words[forest.leaves] = np.arange(len(ids))
        names = tuple(word for each in sentences for word in each)
        return Trees(forest, np.full(forest.nodes, -1), words, (), names), None


def train(out: str | Path, *, overwrite: bool = False, watch: Display | None = None, **options: Any) -> ParserRun:
    """Trains a parser and keeps it in a run folder.

    Args:
        out: the folder; it appears when the trees are read and everything fits.
        overwrite: replace the run that is there.
        watch: shows training, such as `ritornello.training.Display()`. Default: nothing is shown.
        **options: fields of `TreebankConfig`, `ParserConfig` and `ParserTrainingConfig` by name; all but `train` and
            `valid` have defaults. `cell` may be a class.

    Returns:
        The trained parser, with the weights whose trees had the best F1 on the validation part.

    Raises:
        ArgumentError, DataError, RunError: an option, a tree or a folder that does not fit.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = Path(folder.name, "trees.txt")
        >>> _ = path.write_text("((the cat) (sees (a dog)))\\n((a dog) sleeps)\\n" * 10)
        >>> sizes = {"hidden": 8, "embedding": 8, "encoder": 8, "dropout": 0.0}
        >>> paths = {"train": path, "valid": path, "labelled": False}
        >>> run = train(f"{folder.name}/run", epochs=30, batch=4, lr=0.02, **paths, **sizes)
        >>> run.predict("the dog sees a cat")
        ['((the dog) (sees (a cat)))']
        >>> folder.cleanup()
    """
    cell = options.get("cell")
    if isinstance(cell, type):
        options["cell"] = name_of(cell)
    configs = settle(CONFIGS, options)
    cell_class = cell if isinstance(cell, type) else catalogue.find(configs["model"].cell)
    for part, what in (("train", "learn from"), ("valid", "be judged by")):
        if not getattr(configs["treebank"], part):
            raise ArgumentError(f"There are no trees to {what}: name files of them with --{part}.")
    check_device(configs["training"].device)
    with Run.prepare(out, TASK, {name: asdict(config) for name, config in configs.items()}, overwrite=overwrite) as run:
        _prepare(run, cell_class)
    return _fit(run.moved(out), cell_class, watch, resume=False)


def resume(
    out: str | Path,
    *,
    cell: str | type | None = None,
    given: Mapping[str, Any] | None = None,
    watch: Display | None = None,
) -> ParserRun:
    """Goes on with a run that was stopped, with its own options and trees; arguments and errors as of other tasks."""
    given = dict(given or {})
    with Run.reopen(out, TASK) as run:
        cell_class = cell_of(run, _section(run, "model").cell, cell or given.pop("cell", None))
        check_device(_section(run, "training").device)
        check_given(run, CONFIGS, given, out)
        if not (run.path / "vocabulary.json").exists():
            _prepare(run, cell_class)
    return _fit(run.moved(out), cell_class, watch, resume=True)


def load(path: str | Path, *, cell: str | type | None = None, device: str = "cpu") -> ParserRun:
    """A trained parser from its run folder; executes nothing that the folder holds. Arguments as of other tasks."""
    run = Run.open(path)
    check_task(run, TASK)
    check_device(device)
    return _trained(run, cell_of(run, _section(run, "model").cell, cell), device)


def _section(run: Run, name: str) -> Any:
    return section(run, CONFIGS, name)


def _short(paths: Any, config: TreebankConfig) -> Trees:
    """The trees with two to `most` words, without labels, of two children a node."""
    trees = read_trees(paths, labelled=config.labelled)
    trees = replace(trees, labels=np.full_like(trees.labels, -1), label_names=()).collapsed().binarised()
    words = np.bincount(trees.forest.tree_of[trees.forest.leaves], minlength=len(trees))
    chosen = np.flatnonzero((words >= 2) & (words <= config.most))
    if not len(chosen):
        raise DataError(f"{paths}: no sentence has 2 to {config.most} words; give others, or a larger --most.")
    return trees[chosen]


def _prepare(run: Run, cell: Callable[..., Any]) -> None:
    """Reads the run's trees into its folder, learns its words, and sees whether cell and sizes fit together."""
    config = _section(run, "treebank")
    parts = {part: _short(list(getattr(config, part)), config) for part in PARTS if getattr(config, part)}
    for part, trees in parts.items():
        write_trees(run.path / f"{part}.txt", trees)
    vocabulary = Vocabulary.learn(parts["train"].word_counts(), least=config.least)
    vocabulary.save(run.path / "vocabulary.json")
    task = _task(run, vocabulary)
    check_steps(
        _section(run, "model").cell,
        lambda: task.loss(_build(run, vocabulary, cell), next(task.batches(0, 0)), None),
    )


def _task(run: Run, vocabulary: Vocabulary) -> ParseTask:
    training = _section(run, "training")
    parts = (read_trees(run.path / f"{part}.txt", labelled=False) for part in ("train", "valid"))
    train, valid = (Sentences.of(trees, vocabulary) for trees in parts)
    return ParseTask(train, valid, training.batch, training.seed, _section(run, "model"))


def _build(run: Run, vocabulary: Vocabulary, cell: Callable[..., Any]) -> SentenceParser:
    config = _section(run, "model")
    return SentenceParser(
        len(vocabulary),
        cell,
        embedding=config.embedding,
        encoder=config.encoder,
        hidden=config.hidden,
        dropout=config.dropout,
    ).to(_section(run, "training").device)


def _fit(run: Run, cell: Callable[..., Any], watch: Display | None, *, resume: bool) -> ParserRun:
    """Trains on a prepared run."""
    config, vocabulary = _section(run, "training"), Vocabulary.load(run.path / "vocabulary.json")
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    model = _build(run, vocabulary, cell)
    _, interrupted = train_loop(_task(run, vocabulary), model, config, run, resume=resume, watch=watch)
    found = _trained(run, cell, config.device)
    found.interrupted = interrupted
    return found


def _trained(run: Run, cell: Callable[..., Any], device: str) -> ParserRun:
    """The run with the weights that it keeps."""
    vocabulary = Vocabulary.load(run.path / "vocabulary.json")
    model = _build(run, vocabulary, cell)
    load_weights(model, read_tensors(run.model_file)[0], run.model_file)
    return ParserRun(run, model.eval().to(device), vocabulary)
