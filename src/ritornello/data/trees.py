"""Trees with words and labels, many of them in flat arrays."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ritornello.data.vocabulary import Vocabulary
from ritornello.errors import DataError, nearest
from ritornello.structures import Forest, binarise, collapse


@dataclass(frozen=True, eq=False)
class Trees:
    """Trees whose nodes have words, labels, both or none; made by `read_trees`, `read_conllu` and their like.

    A part of them is `trees[which]`, for a number, a slice, a list or array of numbers, or a mask.

    Attributes:
        forest: their shapes.
        labels: (nodes,) the place of each node's label in `label_names`; -1 where it has none.
        words: (nodes,) the place of each node's word in `word_names`; -1 where it has none.

    Example:
        >>> from ritornello.data.brackets import parse_trees
        >>> trees = parse_trees("(3 (2 The) (4 best))")
        >>> trees.forest.parents.tolist(), trees.labels.tolist(), trees.words.tolist()
        ([-1, 0, 0], [1, 0, 2], [-1, 0, 1])
        >>> trees.label_names, trees.word_names
        (('2', '3', '4'), ('The', 'best'))
    """

    forest: Forest
    labels: np.ndarray
    words: np.ndarray
    label_names: tuple[str, ...]
    word_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.forest)

    def __getitem__(self, trees: Any) -> Trees:
        nodes = self.forest.nodes_of(trees)
        return replace(self, forest=self.forest[trees], labels=self.labels[nodes], words=self.words[nodes])

    def sentences(self) -> list[list[str]]:
        """The words of each tree, in the order of its nodes."""
        names, nodes = self.word_names, iter(self.words.tolist())
        return [
            [names[word] for _, word in zip(range(size), nodes, strict=False) if word >= 0]
            for size in self.forest.sizes.tolist()
        ]

    def word_counts(self) -> Counter[str]:
        """How often each word occurs."""
        counts = np.bincount(self.words[self.words >= 0], minlength=len(self.word_names))
        return Counter({name: count for name, count in zip(self.word_names, counts.tolist(), strict=True) if count})

    def encoded(self, vocabulary: Vocabulary) -> Trees:
        """The same trees with `words` as ids of a vocabulary."""
        ids = np.append(vocabulary.ids(self.word_names), -1)
        return replace(self, words=ids[self.words], word_names=vocabulary.names)

    def relabelled(self, names: Sequence[str]) -> Trees:
        """The same trees with `labels` as places among these names.

        Raises:
            DataError: a label that is not among them.
        """
        places = {name: place for place, name in enumerate(names)}
        table = np.array([*(places.get(name, -2) for name in self.label_names), -1], np.int64)
        labels = table[self.labels]
        if (labels == -2).any():
            node = (labels == -2).argmax()
            name = self.label_names[self.labels[node]]
            raise DataError(f"tree {self.forest.tree_of[node]} has the label {name!r}: {nearest(name, names)}")
        return replace(self, labels=labels, label_names=tuple(names))

    def grouped(self, groups: Sequence[Sequence[str]]) -> Trees:
        """The same trees with `labels` as places among groups of labels; -1 where no group has the label.

        Example:
            >>> from ritornello.data.brackets import parse_trees
            >>> trees = parse_trees("(3 (2 The) (4 best))").grouped([("0", "1"), ("3", "4")])
            >>> trees.labels.tolist(), trees.label_names
            ([1, -1, 1], ('0+1', '3+4'))
        """
        places = {name: place for place, group in enumerate(groups) for name in group}
        table = np.array([*(places.get(name, -1) for name in self.label_names), -1], np.int64)
        return replace(self, labels=table[self.labels], label_names=tuple(map("+".join, groups)))

    def collapsed(self) -> Trees:
        """Without unary nodes: a chain of only children is one node, with the highest label and the lowest word.

        Example:
            >>> from ritornello.data.brackets import format_trees, parse_trees
            >>> format_trees(parse_trees("(S (VP (V go) (ADV (RB away))))").collapsed())
            ['(S (V go) (ADV away))']
        """
        forest, highest, lowest = collapse(self.forest)
        return replace(self, forest=forest, labels=self.labels[highest], words=self.words[lowest])

    def binarised(self, side: str = "right") -> Trees:
        """With at most two children a node: see `ritornello.structures.binarise`; new nodes have no label.

        Example:
            >>> from ritornello.data.brackets import format_trees, parse_trees
            >>> trees = parse_trees("(a b c d)", labelled=False)
            >>> format_trees(trees.binarised()), format_trees(trees.binarised("left"))
            (['(a (b (c d)))'], ['(((a b) c) d)'])
        """
        forest, origin = binarise(self.forest, side)
        labels, words = (np.where(origin >= 0, array[origin], -1) for array in (self.labels, self.words))
        return replace(self, forest=forest, labels=labels, words=words)


def named(ids: np.ndarray, symbols: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Ids (-1: none) as places among the symbols that are used, and these, in the order of the ids."""
    used, place = np.unique(ids[ids >= 0], return_inverse=True)
    found = np.full(len(ids), -1)
    found[ids >= 0] = place
    return found, tuple(symbols[symbol] for symbol in used.tolist())


def label_order(names: Iterable[str]) -> list[str]:
    """Labels in the order that people expect: integers by value, all else by the alphabet.

    >>> label_order(["10", "2", "-1"]), label_order(["S", "10", "NP"])
    (['-1', '2', '10'], ['10', 'NP', 'S'])
    """
    known = sorted(names)
    return sorted(known, key=int) if are_integers(known) else known


def are_integers(names: Iterable[str]) -> bool:
    """Whether labels are numbers, which have an order."""
    return all(re.fullmatch(r"-?[0-9]+", name) for name in names)
