"""Parsing: bracketed trees in, a model that puts other sentences into brackets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ritornello.data.brackets import read_trees, write_trees
from ritornello.data.vocabulary import Vocabulary
from ritornello.models.parser import SentenceParser, bracket_f1
from ritornello.tasks.experiment import Experiment
from ritornello.tasks.parse_config import ParserConfig
from ritornello.tasks.parse_run import CONFIGS, Batch, ParserRun, Sentences, parsed, short, side_by_side
from ritornello.tasks.treebank import PARTS, Shuffled, check_parts
from ritornello.training.display import Display
from ritornello.training.run import Run


class ParseTask(Shuffled):
    """The margins of sentences' trees.

    Args:
        train, valid: sentences.
        batch: how many are trained side by side.
        seed: of their order.
        config: of the model, for its search and its margin.
    """

    criterion = "valid_error"

    def __init__(self, train: Sentences, valid: Sentences, batch: int, seed: int, config: ParserConfig) -> None:
        super().__init__(len(train.sizes), batch, seed)
        self.train, self.valid, self.config = train, valid, config

    def some(self, which: np.ndarray) -> Batch:
        return self.train.some(which)

    def loss(self, model: nn.Module, batch: Batch, carry: Any) -> tuple[Tensor, Any, int]:
        return self._margins(model, batch).mean(), None, len(batch.instances.sizes)

    def _margins(self, model: Any, batch: Batch) -> Tensor:
        features = model.features(batch.words.to(next(model.parameters()).device), batch.instances.sizes)
        config = self.config
        return model.margin(batch.instances, features, config.margin, batch.trees, config.search, config.width)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        total, count = 0.0, len(self.valid.sizes)
        with torch.no_grad():
            for start, stop in side_by_side(self.valid.sizes):
                total += float(self._margins(model, self.valid.some(np.arange(start, stop))).sum())
        f1 = bracket_f1(parsed(model, self.valid.words, self.valid.sizes, self.config), self.valid.trees)
        return {"valid_loss": total / count, "valid_f1": f1, "valid_error": 1 - f1}


class ParseExperiment(Experiment[ParserRun]):
    """Reads trees, learns words from the training part, and fits a model that finds the trees of sentences."""

    name = "parse"
    kinds = CONFIGS
    prepared = "vocabulary.json"

    def accept(self, configs: Mapping[str, Any]) -> None:
        check_parts(configs["treebank"])

    def prepare(self, run: Run, watch: Display | None) -> None:
        config = self.section(run, "treebank")
        parts = {part: short(list(getattr(config, part)), config) for part in PARTS if getattr(config, part)}
        for part, trees in parts.items():
            write_trees(run.path / f"{part}.txt", trees)
        Vocabulary.learn(parts["train"].word_counts(), least=config.least).save(run.path / "vocabulary.json")

    def known(self, run: Run) -> Vocabulary:
        return Vocabulary.load(run.path / "vocabulary.json")

    def task(self, run: Run, known: Vocabulary) -> ParseTask:
        training = self.section(run, "training")
        parts = (read_trees(run.path / f"{part}.txt", labelled=False) for part in ("train", "valid"))
        train, valid = (Sentences.of(trees, known) for trees in parts)
        return ParseTask(train, valid, training.batch, training.seed, self.section(run, "model"))

    def build(self, run: Run, known: Vocabulary, cell: Callable[..., Any]) -> SentenceParser:
        config = self.section(run, "model")
        return SentenceParser(
            len(known),
            cell,
            embedding=config.embedding,
            encoder=config.encoder,
            hidden=config.hidden,
            dropout=config.dropout,
        )

    def use(self, run: Run, model: SentenceParser, known: Vocabulary) -> ParserRun:
        return ParserRun(run, model, known)


EXPERIMENT = ParseExperiment()
resume, load = EXPERIMENT.resume, EXPERIMENT.load


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
    return EXPERIMENT.train(out, options, overwrite=overwrite, watch=watch)
