"""Trees, with any number of children a node, or with slots of which some are empty."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ritornello.errors import ArgumentError
from ritornello.structures.acyclic import Acyclic, doublings, places, whole
from ritornello.structures.schedule import Schedule

AnyTrees = Acyclic | Sequence[Sequence[int] | np.ndarray]  # a batch, or each tree's parents


@dataclass(frozen=True, eq=False)
class Forest(Acyclic):
    """A batch of trees in flat arrays, made by `from_parents`, `from_nested`, `from_depths` or `from_flat`.

    What hangs on the shape alone is computed once; a part of a forest, `forest[trees]` for anything that `nodes_of`
    takes, only gathers.

    Attributes:
        sizes, heights, counts: see `Acyclic`.
        parents: (nodes,) the parent of each node, numbered from 0 in each tree; -1 at the root.
        slots: (nodes,) which child of its parent each node is; -1 at the root.

    Example:
        >>> trees = Forest.from_parents([[2, 2, -1], [-1]])
        >>> len(trees), trees.nodes, trees.heights.tolist(), trees.slots.tolist()
        (2, 4, [0, 0, 1, 0], [0, 1, -1, -1])
        >>> trees[[1, 0, 1]].parents.tolist()
        [-1, 2, 2, -1, -1]
    """

    parents: np.ndarray
    slots: np.ndarray

    @classmethod
    def from_parents(
        cls, trees: Sequence[Sequence[int] | np.ndarray], slots: Sequence[Sequence[int] | np.ndarray] | None = None
    ) -> Forest:
        """Trees from lists of parents.

        Args:
            trees: for each tree the parent of every node, -1 for the root.
            slots: for each tree which child of its parent every node is, from 0; the root's does not matter. Default:
                its place among its siblings.

        Raises:
            ArgumentError: a tree without nodes, with no root or several, a parent that is no node, a cycle, or siblings
                in one slot.

        Example:
            >>> Forest.from_parents([[2, 2, -1]], slots=[[1, 0, 0]]).slots.tolist()
            [1, 0, -1]
        """
        parents, sizes = _flattened(trees, "parents")
        if slots is None:
            return cls.from_flat(parents, sizes)
        given, found = _flattened(slots, "slots")
        if found.tolist() != sizes.tolist():
            raise ArgumentError(f"slots are given for {found.tolist()} nodes; the trees have {sizes.tolist()}.")
        return cls.from_flat(parents, sizes, given)

    @classmethod
    def from_flat(cls, parents: np.ndarray, sizes: np.ndarray, slots: np.ndarray | None = None) -> Forest:
        """Trees from the parents (nodes,), sizes (trees,) and slots (nodes,) that a `Forest` has; errors as above."""
        if sizes.sum() != len(parents):
            raise ArgumentError(f"sizes add up to {sizes.sum()} nodes, and there are {len(parents)} parents.")
        size_of = np.repeat(sizes, sizes)
        _check_parents(parents, sizes, size_of)
        starts = np.repeat(sizes.cumsum() - sizes, sizes)
        above = np.where(parents >= 0, parents + starts, -1)
        child = np.flatnonzero(above >= 0)
        if slots is None:
            slots = np.full(len(above), -1)
            slots[child] = places(above[child])
        else:
            slots = np.where(parents >= 0, slots, -1)
            _check_slots(above, slots, child, starts, sizes)
        heights, cycle = _heights(above, int(sizes.max(initial=0)))
        if cycle is not None:
            tree = np.searchsorted(sizes.cumsum(), cycle, side="right")
            node = cycle - starts[cycle]
            raise ArgumentError(f"Tree {tree}: the parents form a cycle through node {node}; a tree has none.")
        counts = np.bincount(above[child], minlength=len(above))
        return cls(sizes, heights, counts, parents, slots)

    @classmethod
    def from_depths(cls, depths: Sequence[int] | np.ndarray) -> Forest:
        """Trees from how deep each node lies, nodes in the order of opening brackets (parents first).

        Args:
            depths: (nodes,) 0 at each root, where a tree begins; elsewhere at most one more than at the node before.

        Raises:
            ArgumentError: a depth that no node before it leads to.

        Example:
            >>> Forest.from_depths([0, 1, 1, 2, 0]).parents.tolist()
            [-1, 0, 0, 2, -1]
        """
        deep = whole(depths, "depths")
        wrong = np.flatnonzero((deep < 0) | (np.diff(deep, prepend=-1) > 1))
        if len(wrong):
            raise ArgumentError(f"depths: node {wrong[0]} has depth {deep[wrong[0]]}, and no parent precedes it.")
        order = np.argsort(deep, kind="stable")
        node = np.arange(len(deep))
        sorted_keys = deep[order] * len(deep) + order  # a node's parent is the last one before it, a level higher
        above = order[np.searchsorted(sorted_keys, (deep - 1) * len(deep) + node) - 1]
        roots = np.flatnonzero(deep == 0)
        sizes = np.diff(roots, append=len(deep))
        return cls.from_flat(np.where(deep > 0, above - np.repeat(roots, sizes), -1), sizes)

    @classmethod
    def from_nested(cls, trees: Sequence[Any]) -> tuple[Forest, list[Any]]:
        """Trees from nested lists or tuples, however deep; a leaf is what is neither.

        Returns:
            The forest, whose nodes stand in the order of the opening brackets, and what the leaves are.

        Raises:
            ArgumentError: an empty list, which is no leaf and has none, or a text in place of the trees.

        Example:
            >>> trees, leaves = Forest.from_nested([[["the", "cat"], ["sat", "down"]], "yes"])
            >>> trees.parents.tolist(), leaves
            ([-1, 0, 1, 1, 0, 4, 4, -1], ['the', 'cat', 'sat', 'down', 'yes'])
            >>> trees.leaves.tolist()
            [2, 3, 5, 6, 7]
        """
        depths: list[int] = []
        leaves: list[Any] = []
        if isinstance(trees, str):
            raise ArgumentError("Trees are nested lists, not a text; ritornello.data.brackets reads those.")
        for number, tree in enumerate(trees):
            open_lists: list[Iterator[Any]] = [iter([tree])]
            while open_lists:
                for item in open_lists[-1]:
                    depths.append(len(open_lists) - 1)
                    if not isinstance(item, list | tuple):
                        leaves.append(item)
                        continue
                    if not item:
                        raise ArgumentError(f"Tree {number} holds an empty list; a list has children, a leaf is none.")
                    open_lists.append(iter(item))
                    break
                else:
                    open_lists.pop()
        return cls.from_depths(depths), leaves

    def __getitem__(self, trees: Any) -> Forest:
        chosen = self._chosen(trees)
        nodes = self.nodes_of(chosen)
        arrays = (array[nodes] for array in (self.heights, self.counts, self.parents, self.slots))
        return Forest(self.sizes[chosen], *arrays)

    @cached_property
    def above(self) -> np.ndarray:
        """(nodes,) `parents`, numbered through all trees."""
        return np.where(self.parents >= 0, self.parents + np.repeat(self.starts, self.sizes), -1)

    def edges(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        child = np.flatnonzero(self.parents >= 0)
        return child, self.above[child], self.slots[child]


def forest(trees: AnyTrees, slots: int | None = None, inputs: str = "nodes") -> Schedule:
    """The schedule of a batch of trees or graphs.

    Args:
        trees: a `Forest`, `Graphs`, or for each tree the parent of every node, -1 for the root. A tree's nodes follow
            those of the trees before it in the input's rows.
        slots: None, or for cells that tell their children apart how many they know: see `Acyclic.schedule`.
        inputs: which nodes have an x: "nodes", "leaves" or "inner".

    Raises:
        ArgumentError: see `Forest.from_parents` and `Acyclic.schedule`.

    Example:
        >>> s = forest([[2, 2, -1]])
        >>> [(level.start, level.stop) for level in s.levels], s.order.tolist()
        ([(0, 2), (2, 3)], [0, 1, 2])
    """
    return batch_of(trees).schedule(slots, inputs)


def batch_of(trees: AnyTrees) -> Acyclic:
    """Trees or graphs as a batch."""
    return trees if isinstance(trees, Acyclic) else Forest.from_parents(trees)


def _flattened(trees: Sequence[Sequence[int] | np.ndarray], what: str) -> tuple[np.ndarray, np.ndarray]:
    arrays = [whole(tree, f"Tree {number}: {what}") for number, tree in enumerate(trees)]
    flat = np.concatenate([np.zeros(0, np.int64), *arrays]).astype(np.int64)
    return flat, np.array([len(array) for array in arrays], np.int64)


def _check_parents(parents: np.ndarray, sizes: np.ndarray, size_of: np.ndarray) -> None:
    strange = np.flatnonzero((parents < -1) | (parents >= size_of))
    tree_of = np.repeat(np.arange(len(sizes)), sizes)
    roots = np.bincount(tree_of[parents == -1], minlength=len(sizes))
    several = np.flatnonzero(roots != 1)
    if len(strange) and (not len(several) or tree_of[strange[0]] <= several[0]):
        raise ArgumentError(
            f"Tree {tree_of[strange[0]]}: parent {parents[strange[0]]} is no node; parents lie in 0 to "
            f"{size_of[strange[0]] - 1}, the root's is -1."
        )
    if len(several):
        tree = several[0]
        if not sizes[tree]:
            raise ArgumentError(f"Tree {tree} is empty; a tree has a root at least.")
        raise ArgumentError(f"Tree {tree} has {roots[tree]} roots (nodes with parent -1); a tree has one.")


def _check_slots(
    above: np.ndarray, slots: np.ndarray, child: np.ndarray, starts: np.ndarray, sizes: np.ndarray
) -> None:
    order = child[np.lexsort((slots[child], above[child]))]
    twice = (np.diff(above[order], prepend=-1) == 0) & (np.diff(slots[order], prepend=-1) == 0)
    wrong = order[twice | (slots[order] < 0)]
    if len(wrong):
        node = wrong.min()
        tree = np.searchsorted(sizes.cumsum(), node, side="right")
        why = "slots count from 0" if slots[node] < 0 else "so is a sibling"
        raise ArgumentError(
            f"Tree {tree}: node {node - starts[node]} is in slot {slots[node]} of node {above[node] - starts[node]}, "
            f"and {why}."
        )


def _heights(above: np.ndarray, most: int) -> tuple[np.ndarray, int | None]:
    """The longest way from each node down to a leaf, or a node that lies on a cycle.

    Before a round, each node knows its height among the nodes less than `reach` below it.

    Args:
        above: (nodes,) parents, numbered through all trees; -1 at roots.
        most: nodes of the largest tree.
    """
    heights, reach = np.zeros(len(above), np.int64), 1
    for nodes, ancestors in doublings(above):
        if reach >= most:
            return heights, int(ancestors.min())
        np.maximum.at(heights, ancestors, heights[nodes] + reach)
        reach *= 2
    return heights, None
