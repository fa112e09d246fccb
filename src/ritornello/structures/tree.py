"""Trees and other acyclic graphs: any number of predecessors a row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from ritornello.errors import ArgumentError
from ritornello.structures.schedule import Level, Schedule


def forest(trees: Sequence[Sequence[int]]) -> Schedule:
    """The schedule of a batch of trees, given by parents.

    Args:
        trees: for each tree the parent of every node, -1 for the root. A tree's nodes follow those of the trees before
            it in the input's rows.

    Returns:
        A schedule whose levels hold the nodes of one height and one number of children. A leaf's predecessor is its
        tree's entry state; a tree's final state is its root's.

    Raises:
        ArgumentError: a tree without nodes, with no root or several, a parent that is no node, or a cycle.

    Example:
        >>> s = forest([[2, 2, -1]])
        >>> [(level.start, level.stop) for level in s.levels], s.order.tolist()
        ([(0, 2), (2, 3)], [0, 1, 2])
    """
    parents: list[int] = []
    roots: list[int] = []
    tree_of: list[int] = []
    for number, tree in enumerate(trees):
        offset = len(parents)
        roots.append(offset + _root(number, tree))
        parents.extend(offset + parent if parent >= 0 else -1 for parent in tree)
        tree_of.extend([number] * len(tree))

    children: list[list[int]] = [[] for _ in parents]
    for node, parent in enumerate(parents):
        if parent >= 0:
            children[parent].append(node)
    height = _heights(parents, children, tree_of)

    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for node in range(len(parents)):
        groups[height[node], len(children[node])].append(node)

    first_row = 1 + len(trees)
    row_of = [0] * len(parents)
    order: list[int] = []
    levels: list[Level] = []
    for key in sorted(groups):
        nodes = groups[key]
        start = len(order)
        for node in nodes:
            row_of[node] = len(order)
            order.append(node)
        sources = [[first_row + row_of[k] for k in children[n]] or [1 + tree_of[n]] for n in nodes]
        levels.append(Level(start, len(order), torch.tensor(sources, device="cpu")))
    last = torch.tensor([first_row + row_of[root] for root in roots], dtype=torch.long, device="cpu")
    rows = torch.tensor(order, dtype=torch.long, device="cpu")
    return Schedule(len(trees), len(order), tuple(levels), order=rows, last=last)


def _root(number: int, tree: Sequence[int]) -> int:
    bad = next((parent for parent in tree if not -1 <= parent < len(tree)), None)
    if bad is not None:
        raise ArgumentError(
            f"Tree {number}: parent {bad} is no node; parents lie in 0 to {len(tree) - 1}, the root's is -1."
        )
    roots = [node for node, parent in enumerate(tree) if parent == -1]
    if len(roots) != 1:
        raise ArgumentError(f"Tree {number} has {len(roots)} roots (nodes with parent -1); a tree has one.")
    return roots[0]


def _heights(parents: list[int], children: list[list[int]], tree_of: list[int]) -> list[int]:
    """Longest way down to a leaf, leaves first; what is never reached lies on a cycle."""
    waiting = [len(below) for below in children]
    height = [0] * len(parents)
    ready = [node for node, count in enumerate(waiting) if count == 0]
    for node in ready:  # grows while it is walked
        parent = parents[node]
        if parent >= 0:
            height[parent] = max(height[parent], height[node] + 1)
            waiting[parent] -= 1
            if waiting[parent] == 0:
                ready.append(parent)
    if len(ready) < len(parents):
        node = next(node for node, count in enumerate(waiting) if count)
        tree = tree_of[node]
        raise ArgumentError(
            f"Tree {tree}: the parents form a cycle through node {node - tree_of.index(tree)}; a tree has none."
        )
    return height
