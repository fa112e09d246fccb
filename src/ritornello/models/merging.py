"""Search for trees: which neighbours to merge, and in which order.

Legend: B instances of at most n leaves, K hypotheses of each. A node that is not merged yet lives in the place of its
first leaf. Neighbours are on a line (a sentence), or in any graph (regions of a picture).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ritornello.errors import ArgumentError, RunError
from ritornello.structures import Forest

NOTHING = -np.inf
CROSSINGS = 1 << 22  # numbers that are compared at a time
Compose = Callable[[Any, Any], tuple[Any, Tensor]]  # two states (rows, size) to that of their parent, and its score


class Instances(NamedTuple):
    """What is to be merged.

    Attributes:
        sizes: (B,) leaves of each.
        neighbours: (B, n, n) which leaves lie side by side, symmetric.
        groups: for each instance (groups, its leaves): leaves that belong together. A merge is wrong if it takes a part
            of a group together with something outside. None: nothing is known.
    """

    sizes: np.ndarray
    neighbours: np.ndarray
    groups: Sequence[np.ndarray] | None = None

    @classmethod
    def lines(cls, sizes: Sequence[int] | np.ndarray, groups: Sequence[np.ndarray] | None = None) -> Instances:
        """Sentences of these lengths, at least 1.

        >>> Instances.lines([3]).neighbours[0].astype(int).tolist()
        [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
        """
        sizes = np.asarray(sizes, np.int64)
        _check_sizes(sizes)
        place = np.arange(sizes.max(initial=0))
        side_by_side = np.abs(place[:, None] - place) == 1
        inside = place < sizes[:, None]
        return cls(sizes, side_by_side & inside[:, :, None] & inside[:, None, :], groups)

    @classmethod
    def graphs(cls, neighbours: Sequence[np.ndarray], groups: Sequence[np.ndarray] | None = None) -> Instances:
        """Any graphs, each by its (leaves, leaves) matrix of neighbours.

        Raises:
            ArgumentError: a matrix that is not square and symmetric, or a graph that falls apart or has no leaf.
        """
        sizes = np.array([len(each) for each in neighbours], np.int64)
        _check_sizes(sizes)
        found = np.zeros((len(sizes), sizes.max(initial=0), sizes.max(initial=0)), bool)
        for number, each in enumerate(neighbours):
            matrix = np.asarray(each, bool)
            if matrix.shape != (len(each), len(each)) or not (matrix == matrix.T).all():
                raise ArgumentError(f"Graph {number}: neighbours of shape {matrix.shape} are no symmetric matrix.")
            reached = np.arange(len(each)) == 0
            while (more := reached | matrix[reached].any(0)).sum() > reached.sum():
                reached = more
            if not reached.all():
                lost = int((~reached).argmax())
                raise ArgumentError(f"Graph {number} falls apart: no way leads from leaf 0 to leaf {lost}.")
            found[number, : len(each), : len(each)] = matrix & ~np.eye(len(each), dtype=bool)
        return cls(sizes, found, groups)


def _check_sizes(sizes: np.ndarray) -> None:
    if (sizes < 1).any():
        raise ArgumentError(f"Instance {(sizes < 1).argmax()} has no leaf; each needs one at least.")


class Found(NamedTuple):
    """Trees that a search found.

    Attributes:
        trees: leaves first, in their order, then the merges in theirs.
        scores: (B,) summed scores of the merges, penalties left out.
    """

    trees: Forest
    scores: np.ndarray


class Pool:
    """States of nodes, each known by its number."""

    def __init__(self, states: Any) -> None:
        self.kind, self.count = type(states), len(states[0])
        self.fields = [field.detach() for field in states]

    def add(self, states: Any) -> np.ndarray:
        """The numbers of new ones."""
        first, self.count = self.count, self.count + len(states[0])
        for number, field in enumerate(states):
            room = len(self.fields[number])
            if self.count > room:
                grown = field.new_empty(max(self.count, 2 * room), field.shape[1])
                grown[:room] = self.fields[number]
                self.fields[number] = grown
            self.fields[number][first : self.count] = field
        return np.arange(first, self.count)

    def get(self, numbers: np.ndarray) -> Any:
        where = torch.from_numpy(numbers)
        return self.kind(*(field[where] for field in self.fields))


def wrong_merges(members: np.ndarray, of: np.ndarray, groups: Sequence[np.ndarray] | None) -> np.ndarray:
    """Which merged nodes cross a group.

    Args:
        members: (merges, n) the leaves of each.
        of: (merges,) their instances.
    """
    found = np.zeros(len(members), bool)
    if groups is None:
        return found
    most = max((len(each) for each in groups), default=0)
    table = np.zeros((len(groups), most, members.shape[1]), np.float32)
    for number, each in enumerate(groups):
        table[number, : len(each), : each.shape[1]] = each
    rows = max(1, CROSSINGS // max(1, most * members.shape[1]))
    for first in range(0, len(members), rows):
        part = slice(first, first + rows)
        own, mine = table[of[part]], members[part].astype(np.float32)
        shared = np.einsum("rgn,rn->rg", own, mine)
        found[part] = ((shared > 0) & (shared < mine.sum(1)[:, None]) & (shared < own.sum(2))).any(1)
    return found


def _numbers(scores: Tensor) -> np.ndarray:
    """Scores in float64.

    Raises:
        RunError: one is no number.
    """
    found = scores.detach().cpu().double().numpy()
    if not np.isfinite(found).all():
        raise RunError("The score of a merge is no number any more; try a lower --lr or a smaller --clip-norm.")
    return found


def beam_search(
    instances: Instances,
    leaves: Any,
    compose: Compose,
    *,
    width: int = 1,
    penalty: float = 0.0,
    only_right: bool = False,
) -> Found:
    """Merges the best pair of neighbours until one node is left, along several hypotheses; with one, greedily.

    Hypotheses that have merged the same nodes in another order are one.

    Args:
        instances: what to merge.
        leaves: the states of all leaves, instance after instance, fields (leaves, size).
        compose: merges.
        width: K, how many hypotheses are followed.
        penalty: added to the score of each wrong merge while searching: a margin (Taskar et al. 2004).
        only_right: leave wrong merges out.

    Raises:
        ArgumentError: a width below 1, an instance without leaves, or `only_right` where no right merge is left.
        RunError: a score that is no number.
    """
    if not isinstance(width, int) or width < 1:
        raise ArgumentError(f"width must be a positive integer, not {width!r}.")
    beam = _Beam(instances, leaves, compose, width, penalty, only_right)
    for _ in range(int(instances.sizes.max(initial=1)) - 1):
        beam.step()
    return beam.found()


class _Beam:
    """All hypotheses of all instances in arrays: H = B · K rows, those of an instance side by side."""

    def __init__(
        self, instances: Instances, leaves: Any, compose: Compose, width: int, penalty: float, only_right: bool
    ) -> None:
        self.instances, self.compose, self.width = instances, compose, width
        self.penalty, self.only_right = penalty, only_right
        self.pool = Pool(leaves)
        sizes = instances.sizes
        count, n = len(sizes), int(sizes.max(initial=0))
        self.n, rows = n, count * width
        self.of = np.repeat(np.arange(count), width)
        starts = sizes.cumsum() - sizes
        inside = np.arange(n) < sizes[:, None]
        self.node = np.repeat(np.where(inside, starts[:, None] + np.arange(n), -1), width, 0)
        self.name = np.repeat(np.where(inside, np.arange(n), -1), width, 0)  # in the tree that grows
        self.members = np.repeat(np.broadcast_to(np.eye(n, dtype=bool), (count, n, n)), width, 0)
        self.linked = np.repeat(instances.neighbours, width, 0)
        self.score = np.full((rows, n, n), NOTHING)  # of merging two places, the lesser first; penalties included
        self.plain = np.zeros((rows, n, n))
        self.made = np.full((rows, n, n), -1)
        self.total, self.true_total = np.zeros(rows), np.zeros(rows)
        self.total[np.arange(rows) % width > 0] = NOTHING  # at first the hypotheses of an instance are alike
        self.merges: list[tuple[np.ndarray, np.ndarray]] = []
        self.back: list[np.ndarray] = []
        self.hash = np.zeros(rows, np.uint64)
        self.keys = np.random.default_rng(0).integers(1, 1 << 63, n, np.uint64)
        self._score(*np.nonzero(np.triu(self.linked)))

    def _score(self, row: np.ndarray, one: np.ndarray, other: np.ndarray) -> None:
        """What merging these places of these hypotheses is worth."""
        if not len(row):
            return
        states, scores = self.compose(self.pool.get(self.node[row, one]), self.pool.get(self.node[row, other]))
        plain = _numbers(scores)
        merged = self.members[row, one] | self.members[row, other]
        wrong = wrong_merges(merged, self.of[row], self.instances.groups)
        scores_ = plain + self.penalty * wrong
        self.score[row, one, other] = np.where(wrong & self.only_right, NOTHING, scores_)
        self.plain[row, one, other] = plain
        self.made[row, one, other] = self.pool.add(states)

    def step(self) -> None:
        """One merge of each hypothesis that has one left."""
        rows, n, width = len(self.node), self.n, self.width
        flat = self.score.reshape(rows, n * n)
        best = np.argpartition(-flat, min(width, n * n - 1), 1)[:, :width] if width < n * n else np.argsort(-flat, 1)
        value = np.take_along_axis(flat, best, 1)
        done = ~np.isfinite(flat).any(1)  # one node is left, or this is no hypothesis
        options = np.where(done[:, None], NOTHING, self.total[:, None] + value)
        options[done, 0] = self.total[done]
        merged_hash = self._hashes(best, done)
        chosen = self._chosen(options, merged_hash)
        parent, option = chosen // best.shape[1], chosen % best.shape[1]
        pair = best[parent, option]
        total = options[parent, option]
        self.hash = merged_hash[parent, option]
        for name in ("node", "name", "members", "linked", "score", "plain", "made", "true_total"):
            setattr(self, name, getattr(self, name)[parent])
        self.total = total
        self.back.append(parent)
        self._merge(np.flatnonzero(~done[parent] & np.isfinite(total)), pair)

    def _hashes(self, best: np.ndarray, done: np.ndarray) -> np.ndarray:
        """Of the merges that a hypothesis would have made, whatever their order."""
        row = np.arange(len(best))[:, None]
        merged = self.members[row, best // self.n] | self.members[row, best % self.n]
        key = (merged * self.keys).sum(-1, dtype=np.uint64)
        key = (key ^ (key >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
        return np.where(done[:, None], self.hash[:, None], self.hash[:, None] + key)

    def _chosen(self, options: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        """For each hypothesis to come the (flat) option that it is; no two of an instance alike."""
        per = self.width * options.shape[1]
        values, names = options.reshape(-1, per), hashes.reshape(-1, per)
        if self.width == 1:
            found = values.argmax(1)[:, None]
        else:
            order = np.argsort(-values, 1, kind="stable")
            sorted_names = np.take_along_axis(names, order, 1)
            first = np.zeros(names.shape, bool)
            for places, line_names in zip(first, sorted_names, strict=True):
                places[np.unique(line_names, return_index=True)[1]] = True
            rank = np.where(first, np.arange(per), np.arange(per) + per)
            keep = np.argsort(rank, 1, kind="stable")[:, : self.width]
            found = np.take_along_axis(order, keep, 1)
            for line, kept in enumerate(keep):  # fewer than K there are: the rest are no hypotheses
                values[line, found[line][~first[line, kept]]] = NOTHING
        return (np.arange(len(values))[:, None] * per + found).ravel()

    def _merge(self, row: np.ndarray, pair: np.ndarray) -> None:
        one, other = pair[row] // self.n, pair[row] % self.n
        step = len(self.merges)
        children = np.full((len(self.node), 2), -1)
        children[row] = np.stack([self.name[row, one], self.name[row, other]], 1)
        self.merges.append((row, children))
        self.true_total[row] += self.plain[row, one, other]
        self.node[row, one] = self.made[row, one, other]
        self.name[row, one] = self.instances.sizes[self.of[row]] + step
        self.members[row, one] |= self.members[row, other]
        self.linked[row, one] |= self.linked[row, other]
        self.linked[row, one, one] = False
        self.node[row, other] = -1
        for matrix, nothing in ((self.score, NOTHING), (self.linked, False)):
            matrix[row, other, :] = nothing
            matrix[row, :, other] = nothing
        self.linked[row, :, one] = self.linked[row, one, :]
        self.score[row, one, :] = NOTHING
        self.score[row, :, one] = NOTHING
        which, near = np.nonzero(self.linked[row, one])
        self._score(row[which], np.minimum(one[which], near), np.maximum(one[which], near))

    def found(self) -> Found:
        """The best hypothesis of each instance.

        Raises:
            ArgumentError: wrong merges are left out, and no other is left.
        """
        stuck = np.flatnonzero(((self.node >= 0).sum(1) > 1) & np.isfinite(self.total))
        if len(stuck):
            raise _falls_apart(self.of[stuck[0]])
        best = self.total.reshape(-1, self.width).argmax(1) + np.arange(len(self.instances.sizes)) * self.width
        parents, slots = _no_trees(self.instances.sizes.tolist())
        scores, row = self.true_total[best], best
        for step in range(len(self.merges) - 1, -1, -1):
            _, children = self.merges[step]
            for instance, pair in enumerate(children[row].tolist()):
                if pair[0] >= 0:
                    parents[instance][pair] = self.instances.sizes[instance] + step
                    slots[instance][pair] = (0, 1)
            row = self.back[step][row]
        return Found(Forest.from_parents(parents, slots), scores)


def _falls_apart(instance: int) -> ArgumentError:
    return ArgumentError(f"Instance {instance} cannot be merged rightly: a group of it falls apart.")


def _no_trees(sizes: Sequence[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Parents and slots of trees over so many leaves, before anything is known of them."""
    return [np.full(2 * size - 1, -1) for size in sizes], [np.zeros(2 * size - 1, np.int64) for size in sizes]


def chart_search(
    instances: Instances,
    leaves: Any,
    compose: Compose,
    *,
    width: int = 1,
    penalty: float = 0.0,
    only_right: bool = False,
) -> Found:
    """The best trees over sentences, span by span from short to long (Cocke, Kasami, Younger).

    A span's state hangs on the tree within it, so each span keeps its `width` best trees: with as many as there can be
    the search is exact, with fewer it is exact but for what a worse tree within would have brought without.

    Arguments as `beam_search`'s; the instances are lines.

    Raises:
        ArgumentError: as there, or instances that are no lines.
    """
    if not isinstance(width, int) or width < 1:
        raise ArgumentError(f"width must be a positive integer, not {width!r}.")
    if not (instances.neighbours == Instances.lines(instances.sizes).neighbours).all():
        raise ArgumentError("chart_search takes sentences, whose neighbours lie on a line; use beam_search.")
    return _Chart(instances, leaves, compose, width, penalty, only_right).found()


class _Chart:
    """A cell for each span: its best trees, as numbers of entries; an entry knows its state, score and parts."""

    def __init__(
        self, instances: Instances, leaves: Any, compose: Compose, width: int, penalty: float, only_right: bool
    ) -> None:
        self.instances, self.width = instances, width
        sizes = instances.sizes
        count, n = len(sizes), int(sizes.max(initial=0))
        self.pool = Pool(leaves)
        self.total, self.plain = np.zeros(self.pool.count), np.zeros(self.pool.count)
        self.parts = np.full((self.pool.count, 2), -1)
        self.cells = np.full((count, n, max(n, 1) + 1, width), -1)  # by first leaf and length
        starts = sizes.cumsum() - sizes
        inside = np.arange(n) < sizes[:, None]
        self.cells[:, :, 1, 0] = np.where(inside, starts[:, None] + np.arange(n), -1)
        for length in range(2, n + 1):
            self._fill(length, compose, penalty, only_right)

    def _fill(self, length: int, compose: Compose, penalty: float, only_right: bool) -> None:
        n = self.cells.shape[1]
        b, first = np.nonzero(np.arange(n) + length <= self.instances.sizes[:, None])
        if not len(b):
            return
        cut = np.arange(1, length)
        left = self.cells[b[:, None], first[:, None], cut]  # (spans, cuts, K)
        right = self.cells[b[:, None], first[:, None] + cut, length - cut]
        pairs = np.stack(np.broadcast_arrays(left[..., :, None], right[..., None, :]), -1).reshape(len(b), -1, 2)
        span, option = np.nonzero((pairs >= 0).all(-1))
        one, other = pairs[span, option].T
        states, scores = compose(self.pool.get(one), self.pool.get(other))
        plain = _numbers(scores)
        members = (np.arange(n) >= first[:, None]) & (np.arange(n) < (first + length)[:, None])
        wrong = wrong_merges(members, b, self.instances.groups)[span]
        total = plain + self.total[one] + self.total[other]
        total = np.where(wrong & only_right, NOTHING, total + penalty * wrong)
        values = np.full(pairs.shape[:2], NOTHING)
        values[span, option] = total
        row = np.full(pairs.shape[:2], -1)
        row[span, option] = np.arange(len(span))
        best = np.argsort(-values, 1, kind="stable")[:, : self.width]
        kept = np.isfinite(np.take_along_axis(values, best, 1))
        chosen = np.take_along_axis(row, best, 1)
        line, place = np.nonzero(kept)
        entry = chosen[line, place]
        where = torch.from_numpy(entry)
        made = self.pool.add(type(states)(*(field[where] for field in states)))
        self.total = np.append(self.total, total[entry])
        self.plain = np.append(self.plain, (plain + self.plain[one] + self.plain[other])[entry])
        self.parts = np.concatenate([self.parts, np.stack([one, other], 1)[entry]])
        self.cells[b[line], first[line], length, place] = made

    def found(self) -> Found:
        """The best tree of each instance.

        Raises:
            ArgumentError: wrong merges are left out, and no other is left.
        """
        sizes = self.instances.sizes.tolist()
        parents, slots = _no_trees(sizes)
        scores, start = np.zeros(len(sizes)), 0
        for number, size in enumerate(sizes):
            top = int(self.cells[number, 0, size, 0])
            if top < 0:
                raise _falls_apart(number)
            scores[number] = self.plain[top]
            waiting, name = [(top, -1, 0)], 2 * size - 2
            while waiting:
                entry, parent, slot = waiting.pop()
                is_leaf = self.parts[entry, 0] < 0
                own = entry - start if is_leaf else name
                name -= not is_leaf
                parents[number][own], slots[number][own] = parent, slot
                if not is_leaf:
                    waiting += [(int(self.parts[entry, side]), own, side) for side in (0, 1)]
            start += size
        return Found(Forest.from_parents(parents, slots), scores)
