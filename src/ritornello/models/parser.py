"""Parsing by a recursive network: it merges neighbours and says how good each merge is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ritornello.cells.lstm import LSTM
from ritornello.cells.mode import evaluating
from ritornello.engine.unfold import Unfold
from ritornello.errors import ArgumentError, nearest
from ritornello.executors.reference import step_over
from ritornello.models.merging import Found, Instances, beam_search, chart_search, wrong_merges
from ritornello.nn import Bidirectional, Dropout
from ritornello.structures import Forest, spans

SEARCHES = ("greedy", "beam", "chart")  # as in tasks/parse_config.py


class Parser(nn.Module):
    r"""A recursive network whose nodes have scores; of a tree the sum over its merges.

    .. math:: p = f([c_1; c_2]) \qquad s(p) = w^\top p + b \qquad s(T) = \sum_{p \in T} s(p)

    Socher, Lin, Ng & Manning (2011), "Parsing natural scenes and natural language with recursive neural networks".
    Trained by max margin: the right tree must beat each other one by a margin for each of its wrong merges,

    .. math:: J = \max(0, \max_T (s(T) + \kappa \Delta(T)) - \max_{T^* \text{ right}} s(T^*)),

    with both trees found by search, and the gradient through the two of them (Taskar et al. 2004).

    Args:
        cell: a `Cell` class or function of (input_size, hidden_size): one for trees with two slots, or one that sums
            over its predecessors, to which the order of neighbours means nothing.
        input_size: features of a leaf.
        hidden: features of a node's state.

    Raises:
        ArgumentError: a cell that tells more or fewer than two children apart.

    Example:
        >>> import ritornello as rit
        >>> parser = Parser(rit.cells.TreeLSTM, 3, 4)
        >>> found = parser.search(Instances.lines([2, 3]), torch.randn(5, 3))
        >>> found.trees.sizes.tolist()
        [3, 5]
    """

    def __init__(self, cell: Callable[[int, int], nn.Module], input_size: int, hidden: int) -> None:
        super().__init__()
        self.unfold = Unfold(cell(input_size, hidden))
        if self.unfold.cell.slots not in (None, 2):
            raise ArgumentError(
                f"A parser merges two neighbours; {type(self.unfold.cell).__name__} has {self.unfold.cell.slots} slots."
            )
        self.score = nn.Linear(self.unfold.output_size, 1)

    def forward(self, trees: Forest, x: Tensor) -> Tensor:
        """(trees,) the scores of trees, from their leaves' features (leaves, input_size)."""
        nodes, _ = self.unfold.over(trees, x, inputs="leaves")
        inner = torch.from_numpy(np.flatnonzero(trees.heights > 0)).to(nodes.device)
        of = torch.from_numpy(trees.tree_of).to(nodes.device)[inner]
        merges = self.score(nodes[inner]).squeeze(-1)
        merges = merges.to(torch.promote_types(merges.dtype, torch.float32))
        return merges.new_zeros(len(trees)).index_add(0, of, merges)

    @torch.no_grad()
    def search(self, instances: Instances, x: Tensor, how: str = "greedy", width: int = 8, **options: Any) -> Found:
        """The best trees that are found.

        Args:
            instances: what lies side by side.
            x: (leaves, input_size), instance after instance.
            how: "greedy" (the best merge at each step), "beam" (of `width` hypotheses) or "chart" (sentences only).
            width: of the beam, or trees a span of the chart.
            **options: penalty and only_right of `merging.beam_search`.

        Raises:
            ArgumentError: another `how`, or a chart over what is no line.
        """
        if how not in SEARCHES:
            raise ArgumentError(f"Unknown search {how!r}: {nearest(how, SEARCHES)}.")
        search = chart_search if how == "chart" else beam_search
        with evaluating(self):
            return search(instances, self._leaves(x), self._compose, width=1 if how == "greedy" else width, **options)

    def margin(
        self,
        instances: Instances,
        x: Tensor,
        penalty: float = 0.5,
        right: Forest | None = None,
        how: str = "greedy",
        width: int = 1,
    ) -> Tensor:
        """(instances,) the max-margin loss; instances whose best tree is right, by the margin, have 0.

        The better the search, the truer the loss: what a search does not find, training does not see. A network is at
        its best under the search that it was trained with.

        Args:
            instances: with groups.
            x: (leaves, input_size).
            penalty: κ, the margin of each wrong merge.
            right: the right trees, where there is but one for each. Default: the best among the right ones, searched.
            how, width: of the search.
        """
        rival = self.search(instances, x, how, width, penalty=penalty)
        if right is None:
            right = self.search(instances, x, how, width, only_right=True).trees
        wrong = torch.from_numpy(wrong_in(rival.trees, instances)).to(x)
        return (self(rival.trees, x) + penalty * wrong - self(right, x)).clamp(min=0)

    def _leaves(self, x: Tensor) -> Any:
        cell = self.unfold.cell
        blank = cell.zero_state(len(x), x)
        return cell(x, *[blank] * (cell.slots or 1))

    def _compose(self, one: Any, other: Any) -> tuple[Any, Tensor]:
        cell = self.unfold.cell
        both = cell.State(*(torch.stack(field, 1) for field in zip(one, other, strict=True)))
        new = step_over(cell, one[0].new_zeros(len(one[0]), cell.input_size), both)
        return new, self.score(new[0]).squeeze(-1)


class SentenceParser(Parser):
    """A parser of sentences: a word's features come from a bidirectional LSTM, so that they know what stands around it.

    Args:
        vocabulary: how many words there are.
        cell: as `Parser`'s.
        embedding: features of a word's vector.
        encoder: units of the LSTM in each direction.
        hidden: features of a node's state.
        dropout: share zeroed, in training, of the words' vectors and features.

    Shapes:
        words (words,) integers, sentence after sentence.

    Example:
        >>> import ritornello as rit
        >>> parser = SentenceParser(9, rit.cells.TreeLSTM, embedding=3, encoder=4, hidden=5)
        >>> parser.features(torch.tensor([1, 2, 3, 4, 5]), np.array([2, 3])).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        vocabulary: int,
        cell: Callable[[int, int], nn.Module],
        *,
        embedding: int,
        encoder: int,
        hidden: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(cell, 2 * encoder, hidden)
        self.embed = nn.Embedding(vocabulary, embedding)
        self.encoder = Bidirectional(LSTM(embedding, encoder), LSTM(embedding, encoder))
        self.dropout = Dropout(dropout)

    def features(self, words: Tensor, sizes: np.ndarray) -> Tensor:
        """(words, 2 · encoder), from the words of sentences of these lengths."""
        time, starts = int(sizes.max(initial=0)), sizes.cumsum() - sizes
        reach = np.minimum(starts + np.arange(time)[:, None], max(len(words) - 1, 0))  # padding reads any word
        x = self.dropout(self.embed(words[torch.from_numpy(reach).to(words.device)]))
        outputs, _ = self.encoder(x, lengths=torch.from_numpy(sizes))
        sentence, place = np.nonzero(np.arange(time) < sizes[:, None])
        return self.dropout(outputs)[torch.from_numpy(place), torch.from_numpy(sentence)]


def branching(sizes: Sequence[int] | np.ndarray, how: str) -> Forest:
    """Trees that know nothing of their words: the baselines of parsing.

    Args:
        sizes: words of each sentence.
        how: "left", "right", or "balanced" (halves, the first the smaller).

    Raises:
        ArgumentError: another `how`, or a sentence without a word.

    Example:
        >>> [branching([4], how).parents.tolist() for how in ("right", "balanced")]
        [[-1, 0, 0, 2, 2, 4, 4], [-1, 0, 1, 1, 0, 4, 4]]
    """
    cuts = {"left": lambda n: n - 1, "right": lambda n: 1, "balanced": lambda n: n // 2}
    if how not in cuts:
        raise ArgumentError(f"Unknown branching {how!r}: {nearest(how, cuts)}.")
    depths = []
    for size in sizes:
        waiting = [(int(size), 0)]
        while waiting:
            words, depth = waiting.pop()
            depths.append(depth)
            if words > 1:
                first = cuts[how](words)
                waiting += [(words - first, depth + 1), (first, depth + 1)]
            elif words < 1:
                raise ArgumentError("A sentence without a word has no tree.")
    return Forest.from_depths(depths)


def wrong_in(trees: Forest, instances: Instances) -> np.ndarray:
    """(trees,) how many merges of each tree cross a group."""
    members = leaves_below(trees, instances.neighbours.shape[1])
    inner = trees.heights > 0
    wrong = wrong_merges(members[inner], trees.tree_of[inner], instances.groups)
    return np.bincount(trees.tree_of[inner][wrong], minlength=len(trees))


def leaves_below(trees: Forest, most: int) -> np.ndarray:
    """(nodes, most) which leaves of its tree lie below each node, counted in the order of the tree's leaves."""
    found = np.zeros((trees.nodes, most), bool)
    leaves = trees.leaves
    own = trees.tree_of[leaves]
    first = np.searchsorted(own, np.arange(len(trees)))
    found[leaves, np.arange(len(leaves)) - first[own]] = True
    for height in range(1, int(trees.heights.max(initial=0)) + 1):
        child = np.flatnonzero((trees.parents >= 0) & (trees.heights[trees.above] == height))
        np.logical_or.at(found, trees.above[child], found[child])
    return found


def groups_of(trees: Forest) -> list[np.ndarray]:
    """For each tree its inner nodes' leaves, (inner nodes, leaves): the groups of `Instances`.

    Example:
        >>> groups_of(Forest.from_depths([0, 1, 2, 2, 1]))[0].astype(int).tolist()
        [[1, 1, 1], [1, 1, 0]]
    """
    counts = np.bincount(trees.tree_of[trees.leaves], minlength=len(trees))
    below = _inner_leaves(trees, int(counts.max(initial=0)))
    return [members[:, :count] for members, count in zip(below, counts.tolist(), strict=True)]


def _inner_leaves(trees: Forest, most: int) -> list[np.ndarray]:
    """For each tree (inner nodes, most): which leaves lie below each of its inner nodes."""
    members, inner = leaves_below(trees, most), trees.heights > 0
    ends = np.bincount(trees.tree_of[inner], minlength=len(trees)).cumsum()
    return np.split(members[inner], ends)[:-1]


def bracket_f1(found: Forest, right: Forest) -> float:
    """The F1 of unlabelled brackets over all trees: of spans of two leaves or more, but for the whole; 1 without any.

    Args:
        found, right: trees whose nodes stand in the order of opening brackets, over the same sentences.

    Example:
        >>> right = Forest.from_depths([0, 1, 2, 2, 1])
        >>> bracket_f1(right, right), bracket_f1(Forest.from_depths([0, 1, 1, 2, 2]), right)
        (1.0, 0.0)
    """
    one, other = (_brackets(trees) for trees in (found, right))
    return 2 * len(one & other) / (len(one) + len(other)) if one or other else 1.0


def region_f1(found: Forest, groups: Sequence[np.ndarray]) -> float:
    """The F1 of regions: the sets of leaves below inner nodes, beside the groups; the whole is left out.

    A tree that merges a group of several first and adds the rest later has all groups, and more: recall is of the
    groups, precision of the merges that cross none; each is 1 where there is nothing to find or nothing was merged.
    """
    hit = wanted = made = right = 0
    for below, group in zip(_inner_leaves(found, max(group.shape[1] for group in groups)), groups, strict=True):
        own = below[:, : group.shape[1]]
        own = own[~own.all(1)]
        parts = {each.tobytes() for each in own}
        asked = {each.tobytes() for each in group.astype(bool) if 1 < each.sum() < len(each)}
        hit, wanted = hit + len(parts & asked), wanted + len(asked)
        shared = own.astype(int) @ group.T.astype(int)
        cross = ((shared > 0) & (shared < own.sum(1)[:, None]) & (shared < group.sum(1))).any(1)
        made, right = made + len(own), right + int((~cross).sum())
    recall, precision = hit / wanted if wanted else 1.0, right / made if made else 1.0
    return 2 * recall * precision / max(1e-9, recall + precision)


def _brackets(trees: Forest) -> set[tuple[int, int, int]]:
    starts, lengths = spans(trees)
    inner = (lengths > 1) & (lengths < lengths[trees.roots][trees.tree_of])
    return set(zip(trees.tree_of[inner].tolist(), starts[inner].tolist(), lengths[inner].tolist(), strict=True))
