"""The options of parsing. Needs no torch, so that `rit --help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from ritornello.errors import ArgumentError, nearest
from ritornello.training.config import TrainingConfig, check_dropout, check_least, check_types, settle_paths

SEARCHES = ("greedy", "beam", "chart")


@dataclass(frozen=True)
class TreebankConfig:
    """The trees to learn from.

    Attributes:
        train: files or folders of bracketed trees; labels are left aside, and nodes of several children become nodes of
            two.
        valid: trees that training is judged by.
        test: trees that the result is judged by.
        most: words of a sentence, at most; longer ones are left out.
        least: how often a word occurs in the training part to be known.
        labelled: whether each bracket begins with a label.

    Raises:
        ArgumentError: `most` below 2 or `least` below 1.
    """

    train: tuple[str, ...] = ()
    valid: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    most: int = 20
    least: int = 2
    labelled: bool = True

    def __post_init__(self) -> None:
        settle_paths(self, "train", "valid", "test")
        check_types(self)
        check_least(self, 2, "most")
        check_least(self, 1, "least")


@dataclass(frozen=True)
class ParserConfig:
    """The model.

    Attributes:
        cell: a cell with two slots or one that sums over its predecessors: its name, or module:Class or FILE.py:Class.
        hidden: units of a node's state.
        embedding: features of a word's vector.
        encoder: units, in each direction, of the LSTM that gives words their features.
        dropout: share of vectors and features that is zeroed in training.
        search: chart (all spans), beam or greedy, in training as in use.
        width: trees that a span of the chart keeps, or hypotheses of the beam.
        margin: by how much a right tree must beat another, for each of its wrong merges.

    Raises:
        ArgumentError: a value out of its range.
    """

    cell: str = "tree-lstm"
    hidden: int = 96
    embedding: int = 64
    encoder: int = 64
    dropout: float = 0.3
    search: str = "chart"
    width: int = 1
    margin: float = 0.5

    def __post_init__(self) -> None:
        check_types(self)
        if self.search not in SEARCHES:
            raise ArgumentError(f"Unknown search {self.search!r}: {nearest(self.search, SEARCHES)}.")
        check_least(self, 1, "hidden", "embedding", "encoder", "width")
        check_dropout(self)
        if not 0 <= self.margin < inf:
            raise ArgumentError(f"margin must be 0 or greater and finite, not {self.margin}.")


@dataclass(frozen=True)
class ParserTrainingConfig(TrainingConfig):
    """How a parser is trained: as any other model, with defaults of its own.

    Attributes:
        batch: sentences that are trained side by side.
    """

    lr: float = 0.002
    schedule: str = "constant"
    warmup: int = 0
    clip_norm: float = 5.0
