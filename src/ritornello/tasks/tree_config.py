"""The options of trees with labels. Needs no torch, so that `rit --help` is quick."""

from __future__ import annotations

from dataclasses import dataclass

from ritornello.errors import ArgumentError, nearest
from ritornello.training.config import TrainingConfig, check_dropout, check_least, check_types, settle_paths

MODELS = ("tree", "sequence")
SIDES = ("", "left", "right")


@dataclass(frozen=True)
class TreesConfig:
    """The trees to learn from.

    Attributes:
        train: files or folders of bracketed trees with labels.
        valid: trees that training is judged by.
        test: trees that the result is judged by.
        classes: labels that make one class, between spaces, once for each class (--classes "0 1" --classes "3 4");
            labels that are named nowhere are left out. Without any, each label is a class.
        least: how often a word occurs in the training part to be known.
        binarise: where a node has more than two children, make it nodes of two, to the left or to the right; without
            it trees stay as they are.
        collapse: make one node of each chain of only children.

    Raises:
        ArgumentError: an unknown side, a label in two classes, a `least` below 1.
    """

    train: tuple[str, ...] = ()
    valid: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    least: int = 1
    binarise: str = ""
    collapse: bool = False

    def __post_init__(self) -> None:
        settle_paths(self, "train", "valid", "test", "classes")
        check_types(self)
        if self.binarise not in SIDES:
            raise ArgumentError(f"Unknown side {self.binarise!r} of --binarise: {nearest(self.binarise, SIDES[1:])}.")
        check_least(self, 1, "least")
        named = [label for group in self.classes for label in group.split()]
        twice = next((label for label in named if named.count(label) > 1), None)
        if twice is not None or (self.classes and len(self.classes) < 2) or not all(c.split() for c in self.classes):
            why = f"{twice!r} stands in two" if twice is not None else "name two classes at least, each with a label"
            raise ArgumentError(f"classes is {list(self.classes)}: {why}.")


@dataclass(frozen=True)
class TreeModelConfig:
    """The model.

    Attributes:
        model: tree, or sequence for a network that reads the words alone, one by one: what the trees are worth.
        cell: a cell's name, or module:Class or FILE.py:Class for one of your own; empty takes tree-lstm, and lstm for
            sequences.
        hidden: units of a node's state, in each layer.
        embedding: features of a word's vector.
        layers: cells one upon another.
        dropout: share of word vectors and states that is zeroed in training.

    Raises:
        ArgumentError: a value out of its range.
    """

    model: str = "tree"
    cell: str = ""
    hidden: int = 150
    embedding: int = 300
    layers: int = 1
    dropout: float = 0.5

    def __post_init__(self) -> None:
        check_types(self)
        if self.model not in MODELS:
            raise ArgumentError(f"Unknown model {self.model!r}: {nearest(self.model, MODELS)}.")
        check_least(self, 1, "hidden", "embedding", "layers")
        check_dropout(self)
        if not self.cell:
            object.__setattr__(self, "cell", "lstm" if self.model == "sequence" else "tree-lstm")


@dataclass(frozen=True)
class TreeTrainingConfig(TrainingConfig):
    """How a model of trees is trained: as any other, with defaults of its own.

    Attributes:
        batch: trees that are trained side by side.
    """

    batch: int = 25
    optimiser: str = "adagrad"
    lr: float = 0.05
    weight_decay: float = 1e-4
    schedule: str = "constant"
    warmup: int = 0
    clip_norm: float = 5.0
    precision: str = "auto"
