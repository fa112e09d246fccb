"""Bracketed trees in text, read and written: with labels, as Penn's treebank and Stanford's sentiments, or without.

    (3 (2 The) (4 (4 gorgeous) (2 film)))          (S (NP (DT the) (NN cat)) (VP sat))          ((the cat) sat)

A tree may take part of a line, a line or several. Spaces, tabs, line ends and brackets separate; all else, such as a
no-break space, belongs to a word. `-LRB-` and `-RRB-` stand for brackets within words and labels, and are these
brackets once they are read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ritornello.data.text import chunks, find, replacing
from ritornello.data.trees import Trees, label_order, named
from ritornello.errors import DataError, nearest
from ritornello.structures import Forest, preorder

_TOKEN = re.compile(r"[()]|[^() \t\r\n]+")
_OPEN, _CLOSE = 0, 1


def read_trees(
    paths: str | Path | Sequence[str | Path], *, labelled: bool = True, label_names: Sequence[str] | None = None
) -> Trees:
    """Reads trees from UTF-8 files, or all files of folders.

    Args:
        paths: see `ritornello.data.text.find`.
        labelled: each bracket begins with a label. A bracket with one word is a leaf, `(2 The)`; of several words, or
            words among brackets, each is a leaf without a label. A tree in a bracket of its own without a label,
            Penn's `( (S ...) )`, is the tree without it.
        label_names: the labels there may be, in their order. Default: those found, integers by value, others sorted.

    Returns:
        The trees, their nodes in the order of the opening brackets; words are known by their first appearance.

    Raises:
        DataError: with file, line and column: a bracket that is never closed or closes nothing, an empty one, a
            missing or unknown label, text outside of trees; a file without a tree.
    """
    reader = _Reader(labelled, label_names)
    for path in find(paths):
        reader.read("".join(chunks(path)), str(path))
    return reader.trees()


def parse_trees(
    text: str, *, labelled: bool = True, label_names: Sequence[str] | None = None, source: str = "text"
) -> Trees:
    """`read_trees` from a text; `source` is what errors call it.

    Example:
        >>> trees = parse_trees("((the cat) sat) (yes)", labelled=False)
        >>> trees.sentences(), trees.forest.sizes.tolist()
        ([['the', 'cat', 'sat'], ['yes']], [5, 1])
    """
    reader = _Reader(labelled, label_names)
    reader.read(text, source)
    return reader.trees()


class _Nodes(NamedTuple):
    """What is read of a text: arrays (nodes,); -1 where there is no label or word."""

    depths: np.ndarray
    labels: np.ndarray
    words: np.ndarray


class _Reader:
    """Reads texts into one set of symbols. Ids 0 and 1 are the brackets."""

    def __init__(self, labelled: bool, label_names: Sequence[str] | None) -> None:
        self.labelled, self.label_names = labelled, label_names
        self.index: dict[str, int] = defaultdict(count(2).__next__, {"(": _OPEN, ")": _CLOSE})
        self.parts: list[_Nodes] = []

    def read(self, text: str, source: str) -> None:
        tokens = _TOKEN.findall(text)
        if not tokens:
            raise DataError(f"{source}: there is no tree in it")
        ids = np.fromiter(map(self.index.__getitem__, tokens), np.int64, len(tokens))
        found = _Text(text, source, ids)
        found.check_balance()
        if self.labelled:
            found = found.without_outer_brackets()
        found.check(self.labelled)
        if self.labelled and self.label_names is not None:
            self._check_labels(found, self.label_names)
        self.parts.append(found.nodes(self.labelled))

    def _check_labels(self, found: _Text, label_names: Sequence[str]) -> None:
        legal = {self.index[_escaped(name)] for name in label_names}
        wrong = np.flatnonzero(found.shifted(found.ids == _OPEN, 1) & ~np.isin(found.ids, list(legal)))
        if len(wrong):
            name = _unescaped(found.token(wrong[0]))
            raise found.error(wrong[0], f"the label is {name!r}: {nearest(name, label_names)}")

    def trees(self) -> Trees:
        if not self.parts:
            raise DataError("There is no file of trees to read.")
        depths, labels, words = (np.concatenate(arrays) for arrays in zip(*self.parts, strict=True))
        symbols = [_unescaped(symbol) for symbol in self.index]
        (labels, label_names), (words, word_names) = named(labels, symbols), named(words, symbols)
        trees = Trees(Forest.from_depths(depths), labels, words, label_names, word_names)
        return trees.relabelled(label_order(label_names) if self.label_names is None else self.label_names)


class _Text(NamedTuple):
    """A text, its tokens' ids, and which token of the text each is (None: all are left)."""

    text: str
    source: str
    ids: np.ndarray
    kept: np.ndarray | None = None

    def depths(self) -> np.ndarray:
        """(tokens,) how many brackets are open after each token."""
        return ((self.ids == _OPEN).astype(np.int64) - (self.ids == _CLOSE)).cumsum()

    @staticmethod
    def shifted(mask: np.ndarray, places: int) -> np.ndarray:
        """The mask some places to the right (or to the left)."""
        moved = np.zeros_like(mask)
        if places >= 0:
            moved[places:] = mask[: len(mask) - places]
        else:
            moved[:places] = mask[-places:]
        return moved

    def token(self, number: Any) -> str:
        return self._match(number)[0]

    def _match(self, number: Any) -> re.Match[str]:
        number = number if self.kept is None else int(self.kept[number])
        return next(islice(_TOKEN.finditer(self.text), number, None))

    def error(self, number: Any, message: str) -> DataError:
        start = self._match(number).start()
        line, column = self.text.count("\n", 0, start) + 1, start - self.text.rfind("\n", 0, start)
        return DataError(f"{self.source}, line {line}, column {column}: {message}")

    def check_balance(self) -> None:
        depths = self.depths()
        outside = (depths < 0) | ((depths == 0) & (self.ids > _CLOSE))
        if outside.any():
            first = outside.argmax()
            why = "this bracket closes nothing" if self.ids[first] == _CLOSE else "this stands outside of any tree"
            raise self.error(first, why)
        if depths[-1] > 0:
            start = np.flatnonzero(np.diff(depths, prepend=0) * (depths == 1) > 0)[-1]
            missing = f"{depths[-1]} closing bracket{'s are' if depths[-1] > 1 else ' is'} missing"
            raise self.error(start, f"the tree that begins here does not end: {missing}")

    def without_outer_brackets(self) -> _Text:
        """Without the brackets that hold nothing but one tree."""
        depths, opens = self.depths(), self.ids == _OPEN
        begins = opens & (depths == 1)
        tree = begins.cumsum() - 1
        items = (opens & (depths == 2)) | ((self.ids > _CLOSE) & (depths == 1))
        only = np.bincount(tree[items], minlength=begins.sum()) == 1
        outer = begins & self.shifted(opens, -1) & only[tree]
        outer |= (self.ids == _CLOSE) & (depths == 0) & outer[begins][tree]
        kept = np.flatnonzero(~outer)
        return self._replace(ids=self.ids[kept], kept=kept)

    def check(self, labelled: bool) -> None:
        opens, closes = self.ids == _OPEN, self.ids == _CLOSE
        atoms = ~(opens | closes)
        wrong = [(opens & self.shifted(closes, -1), "this bracket is empty: a tree has a word at least")]
        if labelled:
            single = opens & self.shifted(atoms, -1) & self.shifted(closes, -2)
            wrong += [
                (opens & self.shifted(opens, -1), "this bracket has no label"),
                (single, "this bracket has a label or a word, and needs both"),
            ]
        found = [(mask.argmax(), message) for mask, message in wrong if mask.any()]
        if found:
            raise self.error(*min(found))

    def nodes(self, labelled: bool) -> _Nodes:
        """A bracket is a node, and a word too unless it is alone in its bracket."""
        opens, closes = self.ids == _OPEN, self.ids == _CLOSE
        words = ~(opens | closes)
        if labelled:
            words &= ~self.shifted(opens, 1)
        word = 1 + labelled  # from the bracket to the first word
        leaves = opens & self.shifted(words, -word) & self.shifted(closes, -word - 1)
        begins = np.flatnonzero(opens | (words & ~self.shifted(leaves, word)))
        bare, leaf = words[begins], leaves[begins]
        label = self.ids[np.where(bare, begins, begins + 1)] if labelled else np.full(len(begins), -1)
        held = self.ids[np.where(leaf, begins + word, begins)]
        return _Nodes(self.depths()[begins] - opens[begins], np.where(bare, -1, label), np.where(bare | leaf, held, -1))


def words_of(line: str) -> list[str]:
    """The words of a sentence, cut where brackets cut them: at spaces and tabs, with -LRB- and -RRB- for brackets.

    Example:
        >>> words_of("well -LRB- sort of -RRB-")
        ['well', '(', 'sort', 'of', ')']
    """
    return [_unescaped(word) for word in re.findall(r"[^ \t\r\n]+", line)]


def _escaped(word: str) -> str:
    return word.replace("(", "-LRB-").replace(")", "-RRB-")


def _unescaped(word: str) -> str:
    return word.replace("-LRB-", "(").replace("-RRB-", ")")


def format_trees(trees: Trees) -> list[str]:
    """Each tree as a line; what `parse_trees` made is the same once it is read again.

    Raises:
        DataError: what brackets cannot tell: a word at an inner node or none at a leaf, a node without a label where
            others have one (other than a leaf among siblings), an only child that is a leaf without a label, an empty
            word or one with a space.

    Example:
        >>> format_trees(parse_trees(" (S\\n  (NP I)   (VP ran -LRB-away-RRB-))"))
        ['(S (NP I) (VP ran -LRB-away-RRB-))']
    """
    _check_writable(trees)
    order, depths = preorder(trees.forest)
    labels, words = ([_writable(name) for name in names] for names in (trees.label_names, trees.word_names))
    ends = np.maximum(depths - np.append(depths[1:], 0), 0)  # brackets that close after each node
    lines: list[list[str]] = []
    text = ""
    columns = (array.tolist() for array in (trees.labels[order], trees.words[order], depths, ends))
    for label, word, depth, end in zip(*columns, strict=True):
        if depth == 0:
            lines.append([])
        elif text != "(":
            lines[-1].append(" ")
        if word >= 0 > label and depth > 0:
            text = words[word]
        elif word >= 0:
            text = f"({labels[label]} {words[word]})" if label >= 0 else f"({words[word]})"
        else:
            text = f"({labels[label]}" if label >= 0 else "("
        lines[-1] += (text, ")" * end)
    return ["".join(line) for line in lines]


def _writable(name: str) -> str:
    text = _escaped(name)
    if not _TOKEN.fullmatch(text):
        raise DataError(f"{name!r} is empty or holds a space or line end: no word or label that brackets can hold")
    return text


def _check_writable(trees: Trees) -> None:
    forest, above = trees.forest, trees.forest.above
    leaf, has_word, bare = forest.heights == 0, trees.words >= 0, trees.labels < 0
    wrong = [
        (leaf & ~has_word, "is a leaf without a word"),
        (~leaf & has_word, "has children and a word"),
        (leaf & bare & (above >= 0) & (forest.counts[above] == 1), "is an only child and has no label"),
    ]
    if not bare.all():
        wrong.append((bare & (~leaf | (above < 0)), "has no label, and others have"))
    found = [(mask.argmax(), message) for mask, message in wrong if mask.any()]
    if found:
        node, message = min(found)
        tree = forest.tree_of[node]
        raise DataError(f"tree {tree}: node {node - forest.starts[tree]} {message}; brackets cannot tell")


def write_trees(path: str | Path, trees: Trees) -> None:
    """Writes a line for each tree; errors as in `format_trees`."""
    text = "".join(f"{line}\n" for line in format_trees(trees))
    with replacing(Path(path)) as file:
        file.write(text.encode())
