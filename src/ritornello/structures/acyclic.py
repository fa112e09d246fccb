"""What trees and graphs have in common: many of them in flat arrays, and their levels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch

from ritornello.errors import ArgumentError, nearest
from ritornello.structures.schedule import Inputs, Level, Schedule

INPUTS = ("nodes", "leaves", "inner")


@dataclass(frozen=True, eq=False)
class Acyclic:
    """A batch of trees or graphs; `Forest` and `Graphs` say who precedes whom. Their arrays are not to be written to.

    Attributes:
        sizes: (trees,) how many nodes each has; the nodes of one tree follow those of the tree before it.
        heights: (nodes,) the longest way to a node without predecessors (a leaf), in steps.
        counts: (nodes,) how many predecessors (children) each node has.
    """

    sizes: np.ndarray
    heights: np.ndarray
    counts: np.ndarray

    words = ("Tree", "child", "children")  # for messages

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def nodes(self) -> int:
        """How many nodes there are in all."""
        return len(self.heights)

    @cached_property
    def starts(self) -> np.ndarray:
        """(trees,) the number of each tree's first node."""
        return self.sizes.cumsum() - self.sizes

    @cached_property
    def tree_of(self) -> np.ndarray:
        """(nodes,) the tree of each node."""
        return np.repeat(np.arange(len(self)), self.sizes)

    @cached_property
    def leaves(self) -> np.ndarray:
        """The nodes without predecessors, in order."""
        return np.flatnonzero(self.heights == 0)

    @cached_property
    def roots(self) -> np.ndarray:
        """(trees,) the node of each tree that precedes none."""
        last = np.ones(self.nodes, bool)
        last[self.edges()[0]] = False
        return np.flatnonzero(last)

    def edges(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Who precedes whom, and in which slot: three arrays (edges,) of nodes, nodes and slots.

        Nodes are numbered through all trees here.
        """
        raise NotImplementedError

    def nodes_of(self, trees: Any) -> np.ndarray:
        """The nodes of some trees, tree after tree: what a batch gathers from arrays that have a row for each node.

        Args:
            trees: a number, a slice, a list or array of numbers, or a mask.

        Example:
            >>> from ritornello.structures import Forest
            >>> Forest.from_parents([[2, 2, -1], [-1], [1, -1]]).nodes_of([2, 0]).tolist()
            [4, 5, 0, 1, 2]
        """
        chosen = self._chosen(trees)
        return ranges(self.starts[chosen], self.sizes[chosen])

    def _chosen(self, trees: Any) -> np.ndarray:
        return np.atleast_1d(np.arange(len(self))[trees])

    @classmethod
    def concatenate(cls, batches: Sequence[Self]) -> Self:
        """One batch of several (at least one), without a look at their nodes."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.concatenate([getattr(batch, name) for batch in batches]) for name in names})

    def given(self, inputs: str) -> np.ndarray:
        """The nodes that have an x, in their order.

        Args:
            inputs: as `schedule`'s.

        Raises:
            ArgumentError: other `inputs`.

        Example:
            >>> from ritornello.structures import Forest
            >>> Forest.from_parents([[3, 3, 3, 4, -1]]).given("inner").tolist()
            [3, 4]
        """
        _check_inputs(inputs)
        leaf = self.heights == 0
        return np.arange(self.nodes) if inputs == "nodes" else np.flatnonzero(leaf if inputs == "leaves" else ~leaf)

    def schedule(self, slots: int | None = None, inputs: str = "nodes") -> Schedule:
        """The levels, from the leaves to the roots; in each, nodes stand in their order, those of one tree together.

        Args:
            slots: None for cells that sum over their predecessors: a level holds the nodes of one height and one number
                of predecessors, which stand in the order of their slots. A number N for cells that tell N slots apart:
                a level holds the nodes of one height, its `source` is (rows, N), and an empty slot reads the blank row.
            inputs: which nodes have an x, in their order: all "nodes", only "leaves" or only "inner" nodes.

        Returns:
            A schedule. What a leaf reads, in each slot, is its tree's entry state; a tree's final state is its root's.

        Raises:
            ArgumentError: a predecessor in a slot beyond N, or other `inputs`.

        Example:
            >>> from ritornello.structures import Forest
            >>> batch = Forest.from_parents([[3, 3, 3, 4, -1]])
            >>> [level.source.tolist() for level in batch.schedule().levels]
            [[[1], [1], [1]], [[2, 3, 4]], [[5]]]
            >>> [level.source.tolist() for level in batch.schedule(slots=3).levels]
            [[[1, 1, 1], [1, 1, 1], [1, 1, 1]], [[2, 3, 4]], [[5, 0, 0]]]
        """
        _check_inputs(inputs)
        before, after, slot = self.edges()
        if slots is None:
            slot = self._closed_up(after, slot)
            key = self.heights * (self.counts.max(initial=0) + 1) + self.counts
        else:
            self._check_slots(after, slot, slots)
            key = self.heights
        order = np.argsort(key.astype(np.min_scalar_type(key.max(initial=0))), kind="stable")
        first_row = 1 + len(self)
        row_of = np.empty_like(order)
        row_of[order] = np.arange(first_row, first_row + len(order))

        widths = np.maximum(self.counts[order], 1) if slots is None else np.full(len(order), slots)
        ends = widths.cumsum()
        source = np.zeros(widths.sum(), np.int64)
        source[(ends - widths)[row_of[after] - first_row] + slot] = row_of[before]
        leaves = order[: len(self.leaves)]
        read = np.repeat(1 + self.tree_of[leaves], widths[: len(leaves)])
        source[: len(read)] = read

        starts = np.flatnonzero(np.diff(key[order], prepend=-1))
        levels = _levels(starts.tolist(), widths, torch.from_numpy(source))
        last = torch.from_numpy(row_of[self.roots])
        where, given = torch.from_numpy(order), _inputs(inputs, order, len(leaves))
        return Schedule(len(self), len(order), levels, order=where, last=last, leaves=len(leaves), inputs=given)

    def _closed_up(self, after: np.ndarray, slot: np.ndarray) -> np.ndarray:
        """Slots without the empty ones between them."""
        return slot if (slot < self.counts[after]).all() else places(after, slot)

    def _check_slots(self, after: np.ndarray, slot: np.ndarray, slots: int) -> None:
        if slots < 1:
            raise ArgumentError(f"slots must be a positive integer, not {slots!r}.")
        beyond = np.flatnonzero(slot >= slots)
        if len(beyond):
            (kind, one, several), node = self.words, after[beyond[0]]
            tree = self.tree_of[node]
            raise ArgumentError(
                f"{kind} {tree}: node {node - self.starts[tree]} has {_counted(self.counts[node], one, several)}, one "
                f"in slot {slot[beyond[0]]}; the cell has {_counted(slots, 'slot', 'slots')}, from 0 to {slots - 1}: "
                f"{'give it more, or binarise the trees' if kind == 'Tree' else 'give it more'}."
            )


def _check_inputs(inputs: str) -> None:
    if inputs not in INPUTS:
        raise ArgumentError(f"inputs is {inputs!r}: {nearest(str(inputs), INPUTS)}.")


def _inputs(inputs: str, order: np.ndarray, leaves: int) -> Inputs | None:
    """Of rows in this order, of which the first are leaves."""
    if inputs == "nodes":
        return None
    if inputs == "leaves":
        return Inputs(0, leaves)  # which stand in their order
    inner = order[leaves:]
    return Inputs(leaves, len(order), torch.from_numpy(np.argsort(np.argsort(inner))))


def _counted(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"


def _levels(starts: list[int], widths: np.ndarray, source: torch.Tensor) -> tuple[Level, ...]:
    """The levels that begin at these rows; their sources are views of one flat tensor."""
    bounds = list(pairwise([*starts, len(widths)]))
    wide = widths[starts].tolist()
    pieces = source.split([(stop - start) * width for (start, stop), width in zip(bounds, wide, strict=True)])
    return tuple(
        Level(start, stop, piece.view(-1, width))
        for (start, stop), width, piece in zip(bounds, wide, pieces, strict=False)  # split(()) gives one empty piece
    )


def whole(values: Any, what: str) -> np.ndarray:
    """Integers in one line.

    Raises:
        ArgumentError: beginning with `what`, where they are not.
    """
    try:
        array = np.asarray(values)
    except ValueError:  # lists of several lengths
        raise ArgumentError(f"{what} must be integers, one for each node, not lists in lists.") from None
    if array.ndim != 1 or (array.dtype.kind not in "iu" and len(array)):
        raise ArgumentError(f"{what} must be integers, one for each node, not {array.dtype} of shape {array.shape}.")
    return array.astype(np.int64)


def ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """start, start + 1, ... for each start, as many as its size says, one after the other.

    >>> ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    before = sizes.cumsum() - sizes
    return np.arange(sizes.sum()) + np.repeat(starts - before, sizes)


def places(groups: np.ndarray, by: np.ndarray | None = None) -> np.ndarray:
    """The place of each item among those of its group, as they stand or ordered by something.

    >>> places(np.array([7, 3, 7, 7])).tolist()
    [0, 0, 1, 2]
    """
    order = np.argsort(groups, kind="stable") if by is None else np.lexsort((by, groups))
    firsts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    found = np.empty_like(order)
    found[order] = np.arange(len(order)) - np.repeat(firsts, np.diff(firsts, append=len(order)))
    return found


def doublings(above: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Nodes and their ancestors 1 above, then 2, 4, 8 and so on, for as long as some node has one.

    What is summed along the ways to the roots is so done in as many rounds as the depth has binary digits, whatever the
    shape. On a cycle it does not end.

    Args:
        above: (nodes,) parents, -1 at roots.
    """
    below = np.flatnonzero(above >= 0)
    while len(below):
        yield below, above[below]
        above = np.where(above >= 0, above[above], -1)
        below = below[above[below] >= 0]
