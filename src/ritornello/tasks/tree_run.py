"""A trained model of trees in use: it labels trees and is scored on them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ritornello.cells.mode import evaluating
from ritornello.data.brackets import format_trees, parse_trees, read_trees
from ritornello.data.trees import Trees
from ritornello.data.vocabulary import Vocabulary
from ritornello.engine import Unfold
from ritornello.errors import DataError
from ritornello.models.tree import TreeClassifier
from ritornello.tasks.tree_config import TreesConfig
from ritornello.tasks.treebank import TreebankRun
from ritornello.training.run import Run

SENTIMENT = ("0", "1", "2", "3", "4")  # very negative to very positive
SIDE_BY_SIDE = 256


class Reading:
    """How a model reads trees: their shape, its words, its classes.

    Args:
        config: of the trees.
        labels: all labels that there are.
        vocabulary: the words that it knows.
    """

    def __init__(self, config: TreesConfig, labels: Sequence[str], vocabulary: Vocabulary) -> None:
        self.config, self.labels, self.vocabulary = config, tuple(labels), vocabulary
        self.groups = [tuple(group.split()) for group in config.classes]
        self.classes = tuple(map("+".join, self.groups)) or self.labels

    def __call__(self, trees: Trees) -> Trees:
        """The same trees with ids for words and classes for labels.

        Raises:
            DataError: a label that the model does not have.
        """
        trees = arranged(trees, self.config).encoded(self.vocabulary)
        if self.groups:
            return trees.grouped(self.groups)
        return trees.relabelled(self.labels) if trees.label_names else replace(trees, label_names=self.labels)

    def files(self, paths: str | Path | Sequence[str | Path]) -> Trees:
        """The trees of files, read so.

        Raises:
            DataError: with file, line and column: what is malformed, or a label that the model does not have.
        """
        return self(read_trees(paths, label_names=None if self.groups else self.labels))


def arranged(trees: Trees, config: TreesConfig) -> Trees:
    """The trees in the shape that the configuration asks for."""
    if config.collapse:
        trees = trees.collapsed()
    return trees.binarised(config.binarise) if config.binarise else trees


def check_children(model: nn.Module, trees: Trees, part: str = "") -> None:
    """Raises DataError where a node has more children than the model's cell has slots."""
    slots = next(part.cell.slots for part in model.modules() if isinstance(part, Unfold))
    if slots is None:
        return
    wide = np.flatnonzero(trees.forest.slots >= slots)
    if len(wide):
        node = trees.forest.above[wide[0]]
        raise DataError(
            f"tree {trees.forest.tree_of[node]}{part} has a node with {trees.forest.counts[node]} children, and the "
            f"cell {slots} slots; train with --binarise left or right, with more slots, or with a cell that sums over "
            "any number of children, such as lstm"
        )


def labelled(trees: Trees) -> Tensor | None:
    """The numbers of the nodes that have a label; None for all."""
    known = trees.labels >= 0
    return None if known.all() else torch.from_numpy(np.flatnonzero(known))


def logits_of(model: nn.Module, trees: Trees, *, known: bool = False) -> Iterator[tuple[Trees, Tensor]]:
    """Some trees at a time, and their nodes' logits; with `known` zeros for nodes without a label.

    Raises:
        DataError: a node with more children than the cell has slots.
    """
    check_children(model, trees)
    device = next(model.parameters()).device
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(trees), SIDE_BY_SIDE):
            part = trees[start : start + SIDE_BY_SIDE]
            words = torch.from_numpy(part.words[part.forest.leaves]).to(device)
            nodes = labelled(part) if known else None
            logits = model(part.forest, words, nodes).float().cpu()
            if nodes is not None:
                logits = logits.new_zeros(part.forest.nodes, logits.shape[1]).index_copy(0, nodes, logits)
            yield part, logits


def scores(model: nn.Module, trees: Trees) -> dict[str, float]:
    """How well a model labels trees.

    Returns:
        loss, in nats a labelled node; root and node, the shares of labelled roots and of all labelled nodes whose
        likeliest label is theirs; with the five classes of sentiment also binary, the share of the roots that are not
        neutral whose side has the larger probability; trees and nodes, how many had a label.
    """
    loss, right, binary, nodes, roots = 0.0, np.zeros(2), [], 0, 0
    for part, logits in logits_of(model, trees, known=True):
        labels = torch.from_numpy(part.labels)
        known, top = labels >= 0, torch.from_numpy(part.forest.roots)
        loss += float(F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum"))
        hits = (logits.argmax(-1) == labels) & known
        right += [int(hits[top].sum()), int(hits.sum())]
        nodes, roots = nodes + int(known.sum()), roots + int(known[top].sum())
        if trees.label_names == SENTIMENT:
            sided = top[(labels[top] >= 0) & (labels[top] != 2)]
            share = logits[sided].softmax(-1)
            binary += ((share[:, 3:].sum(-1) > share[:, :2].sum(-1)) == (labels[sided] > 2)).tolist()
    found = {"loss": loss / max(nodes, 1), "root": right[0] / max(roots, 1), "node": right[1] / max(nodes, 1)}
    if binary:
        found["binary"] = sum(binary) / len(binary)
    return {name: float(value) for name, value in found.items()} | {"trees": roots, "nodes": nodes}


class TreeModelRun(TreebankRun):
    """A trained model of trees: labels them and is scored. Made by `train` or `ritornello.load`.

    Attributes:
        read: how it reads trees.
    """

    columns: ClassVar[dict[str, tuple[str, str]]] = {
        "loss": ("nats/node", ".4f"),
        "root": ("roots", ".1%"),
        "node": ("all nodes", ".1%"),
        "binary": ("roots, two sides", ".1%"),
        "trees": ("trees", ",.0f"),
    }

    def __init__(self, run: Run, model: TreeClassifier, read: Reading) -> None:
        super().__init__(run, model)
        self.read = read

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the labels that it gives."""
        return self.read.classes

    def evaluate(self, trees: str | Path | Sequence[str | Path]) -> dict[str, float]:
        """Scores files or folders of labelled trees, or a part of the run's own.

        Args:
            trees: paths, or "train", "valid" or "test".

        Returns:
            loss, root, node, and for five classes of sentiment binary: see `scores`.

        Raises:
            DataError: a file that is missing or malformed, a label that the model does not have, or no label at all.
        """
        read = self.read.files(self.own(trees) or trees)
        if not (read.labels >= 0).any():
            raise DataError(f"{trees}: no node has a label that counts; the model's are {', '.join(self.classes)}.")
        return scores(self.model, read)

    def label(self, trees: Trees) -> tuple[Trees, np.ndarray]:
        """Labels every node.

        Returns:
            The trees, in the shape that the model reads and with the likeliest label of each node; and the
            probabilities (nodes, classes).
        """
        plain = replace(trees, labels=np.full_like(trees.labels, -1), label_names=())
        shaped = arranged(plain, self.read.config)
        found = [logits.softmax(-1).numpy() for _, logits in logits_of(self.model, self.read(plain))]
        shares = np.concatenate([np.zeros((0, len(self.classes)), np.float32), *found])
        return replace(shaped, labels=shares.argmax(-1), label_names=self.classes), shares

    def predict(self, text: str) -> list[str]:
        """Labels trees in brackets, `(not (good film))`; what labels they have already are set aside.

        Args:
            text: one or several trees. Where brackets begin with labels that the model knows, these are labels.
                Without brackets each line is a sentence, read as if it branched to the right.

        Returns:
            The trees with labels, a line each.

        Raises:
            DataError: brackets that do not fit, or a label among known ones that the model does not have, with line
                and column.
        """
        return format_trees(self.answer(text)[0])

    def answer(self, text: str, source: str = "text") -> tuple[Trees, np.ndarray]:
        """The trees themselves, and the probabilities (nodes, classes); `source` is what errors call the text."""
        return self.label(self.parse(text, source))

    def parse(self, text: str, source: str = "text") -> Trees:
        """The trees of a text, as `predict` takes them; `source` is what errors call it."""
        if "(" not in text and ")" not in text:
            text = "".join(map(_branching, text.split("\n")))
            return parse_trees(text, labelled=False, source=source)
        try:
            trees = parse_trees(text, source=source)
        except DataError:
            return parse_trees(text, labelled=False, source=source)
        known = {*self.read.labels, *self.classes}
        if known.isdisjoint(trees.label_names):
            return parse_trees(text, labelled=False, source=source)
        if not known.issuperset(trees.label_names):
            parse_trees(text, label_names=sorted(known), source=source)  # tells the label that is none, and where
        return trees


def _branching(sentence: str) -> str:
    """A sentence as a tree that branches to the right: (not (very good))."""
    words = re.findall(r"[^ \t\r]+", sentence)
    if len(words) == 1:
        return f"({words[0]})"
    return "".join(f"({word} " for word in words[:-1]) + "".join(words[-1:]) + ")" * (len(words) - 1)
