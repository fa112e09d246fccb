"""A trained parser in use: it puts sentences into brackets and is scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ritornello.data.brackets import format_trees, parse_trees, read_trees, words_of
from ritornello.data.trees import Trees
from ritornello.data.vocabulary import Vocabulary
from ritornello.errors import DataError
from ritornello.models.merging import Instances
from ritornello.models.parser import SentenceParser, bracket_f1, branching, groups_of
from ritornello.structures import Forest, preorder
from ritornello.tasks.experiment import section
from ritornello.tasks.parse_config import ParserConfig, ParserTrainingConfig, TreebankConfig
from ritornello.tasks.treebank import TreebankRun
from ritornello.training.run import Run

CONFIGS = {"treebank": TreebankConfig, "model": ParserConfig, "training": ParserTrainingConfig}
SPANS = 1 << 16  # of the sentences that are parsed side by side, as if all were as long as the longest


def short(paths: Any, config: TreebankConfig) -> Trees:
    """The trees with two to `most` words, without labels, of two children a node."""
    trees = read_trees(paths, labelled=config.labelled)
    trees = replace(trees, labels=np.full_like(trees.labels, -1), label_names=()).collapsed().binarised()
    words = np.bincount(trees.forest.tree_of[trees.forest.leaves], minlength=len(trees))
    chosen = np.flatnonzero((words >= 2) & (words <= config.most))
    if not len(chosen):
        raise DataError(f"{paths}: no sentence has 2 to {config.most} words; give others, or a larger --most.")
    return trees[chosen]


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


def side_by_side(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Where pieces of sentences that are parsed together begin and end: their spans fit into memory.

    Example:
        >>> list(side_by_side(np.array([5, 5, 400, 5])))
        [(0, 2), (2, 3), (3, 4)]
    """
    start, longest = 0, 0
    for stop, size in enumerate(sizes.tolist()):
        if stop > start and (stop + 1 - start) * max(longest, size) ** 2 > SPANS:
            yield start, stop
            start, longest = stop, 0
        longest = max(longest, size)
    if start < len(sizes):
        yield start, len(sizes)


def parsed(model: Any, words: np.ndarray, sizes: np.ndarray, config: ParserConfig) -> Forest:
    """The trees that a model finds, nodes in the order of opening brackets."""
    found, starts = [], np.append(0, sizes.cumsum())
    device = next(model.parameters()).device
    with torch.no_grad():
        for start, stop in side_by_side(sizes):
            own = torch.from_numpy(words[starts[start] : starts[stop]]).to(device)
            features = model.features(own, sizes[start:stop])
            trees = model.search(Instances.lines(sizes[start:stop]), features, config.search, config.width).trees
            found.append(Forest.from_depths(preorder(trees)[1]))
    return Forest.concatenate(found)


class ParserRun(TreebankRun):
    """A trained parser: puts sentences into brackets and is scored. Made by `train` or `ritornello.load`.

    Attributes:
        vocabulary: the words that it knows.
        config: of the model.
    """

    columns: ClassVar[dict[str, tuple[str, str]]] = {
        "f1": ("bracket F1", ".1%"),
        "right": ("right-branching", ".1%"),
        "left": ("left-branching", ".1%"),
        "balanced": ("balanced", ".1%"),
        "sentences": ("sentences", ",.0f"),
    }

    def __init__(self, run: Run, model: SentenceParser, vocabulary: Vocabulary) -> None:
        super().__init__(run, model)
        self.vocabulary = vocabulary
        self.config: ParserConfig = section(run, CONFIGS, "model")

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
        own = self.own(trees)
        read = read_trees(own, labelled=False) if own else short(trees, section(self.run, CONFIGS, "treebank"))
        data = Sentences.of(read, self.vocabulary)
        found = bracket_f1(parsed(self.model, data.words, data.sizes, self.config), data.trees)
        others = {how: bracket_f1(branching(data.sizes, how), data.trees) for how in ("right", "left", "balanced")}
        return {"f1": found, **others, "sentences": len(data.sizes)}

    def predict(self, text: str) -> list[str]:
        """Puts sentences into brackets.

        Args:
            text: sentences, one per line, words between spaces; a bracket within a sentence is a word.

        Returns:
            A tree a line, of unlabelled brackets; see the example of `train`.

        Raises:
            DataError: no word at all, or a line that is in brackets already.
        """
        return format_trees(self.answer(text)[0])

    def answer(self, text: str, source: str = "text") -> tuple[Trees, None]:
        """The trees themselves, with no probabilities; `source` is what errors call the text."""
        lines = text.split("\n")
        for number, line in enumerate(lines, 1):
            if _is_tree(line):
                raise DataError(
                    f"{source}, line {number}, is in brackets already; a parser takes its words alone, and words that "
                    "are brackets as -LRB- and -RRB-."
                )
        sentences = [words for words in map(words_of, lines) if words]
        if not sentences:
            raise DataError(f"{source}: there is no word to put into brackets.")
        sizes = np.array([len(words) for words in sentences])
        said = [word for words in sentences for word in words]
        forest = parsed(self.model, self.vocabulary.ids(said), sizes, self.config)
        numbers = {word: number for number, word in enumerate(dict.fromkeys(said))}
        words = np.full(forest.nodes, -1)
        words[forest.leaves] = [numbers[word] for word in said]
        return Trees(forest, np.full(forest.nodes, -1), words, (), tuple(numbers)), None


def _is_tree(line: str) -> bool:
    if "(" not in line:
        return False
    try:
        return len(parse_trees(line, labelled=False)) == 1
    except DataError:
        return False
