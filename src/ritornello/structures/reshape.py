"""Trees made of trees, and the way through them; all nodes at once, whatever the depth."""

from __future__ import annotations

import numpy as np

from ritornello.errors import ArgumentError, nearest
from ritornello.structures.acyclic import doublings, places
from ritornello.structures.tree import Forest

SIDES = ("left", "right")


def subtree_sizes(forest: Forest) -> np.ndarray:
    """(nodes,) how many nodes there are from each node down, itself among them.

    >>> subtree_sizes(Forest.from_depths([0, 1, 2, 1])).tolist()
    [4, 2, 1, 1]
    """
    sizes = np.ones(forest.nodes, np.int64)
    for nodes, ancestors in doublings(forest.above):
        np.add.at(sizes, ancestors, sizes[nodes])
    return sizes


def spans(forest: Forest) -> tuple[np.ndarray, np.ndarray]:
    """The leaves below each node: where they begin among all leaves, and how many they are.

    Raises:
        ArgumentError: nodes that do not stand in the order of opening brackets.

    Example:
        >>> starts, lengths = spans(Forest.from_depths([0, 1, 1, 2, 2, 0]))
        >>> starts.tolist(), lengths.tolist()
        ([0, 0, 1, 1, 2, 3], [3, 1, 2, 1, 1, 1])
    """
    order, _ = preorder(forest)
    if not (order == np.arange(forest.nodes)).all():
        raise ArgumentError("Spans are of trees whose nodes stand in the order of opening brackets, parents first.")
    before = np.append(0, (forest.heights == 0).cumsum())
    starts = before[:-1]
    return starts, before[order + subtree_sizes(forest)] - starts


def preorder(forest: Forest) -> tuple[np.ndarray, np.ndarray]:
    """The nodes in the order of opening brackets, parents first and children by their slots, tree after tree.

    Returns:
        nodes: (nodes,), numbered through all trees.
        depths: (nodes,) how deep each of them lies; see `Forest.from_depths`.

    Example:
        >>> nodes, depths = preorder(Forest.from_parents([[3, 3, 4, 4, -1]]))
        >>> nodes.tolist(), depths.tolist()
        ([4, 2, 3, 0, 1], [0, 1, 1, 2, 2])
    """
    above, sizes = forest.above, subtree_sizes(forest)
    children = np.flatnonzero(above >= 0)
    children = children[np.lexsort((forest.slots[children], above[children]))]
    ends = sizes[children].cumsum()
    before = ends - sizes[children]
    first = np.diff(above[children], prepend=-1) != 0
    place = np.empty(forest.nodes, np.int64)  # at first, after the parent
    place[children] = 1 + before - before[first][first.cumsum() - 1]
    place[forest.roots] = forest.starts
    depths = (above >= 0).astype(np.int64)
    for nodes, ancestors in doublings(above):
        place[nodes] += place[ancestors]
        depths[nodes] += depths[ancestors]
    order = np.empty_like(place)
    order[place] = np.arange(forest.nodes)
    return order, depths[order]


def collapse(forest: Forest) -> tuple[Forest, np.ndarray, np.ndarray]:
    """Trees without unary nodes: a chain of only children becomes one node.

    Returns:
        The forest, and for each of its nodes the highest and the lowest node of its chain (often the same).

    Example:
        >>> small, highest, lowest = collapse(Forest.from_depths([0, 1, 2, 2, 3]))
        >>> small.parents.tolist(), highest.tolist(), lowest.tolist()
        ([-1, 0, 0], [0, 2, 3], [1, 2, 4])
    """
    node, above = np.arange(forest.nodes), forest.above
    highest = np.where((above >= 0) & (forest.counts[above] == 1), above, node)
    while (highest != highest[highest]).any():
        highest = highest[highest]
    lowest = np.flatnonzero(forest.counts != 1)
    highest = highest[lowest]
    number = np.empty_like(node)
    number[lowest] = np.arange(len(lowest))
    sizes = np.bincount(forest.tree_of[lowest], minlength=len(forest))
    parents = np.where(above[highest] >= 0, number[above[highest]], -1)
    return Forest.from_flat(_local(parents, sizes), sizes, forest.slots[highest]), highest, lowest


def binarise(forest: Forest, side: str = "right") -> tuple[Forest, np.ndarray]:
    """Trees of at most two children a node: of more, all but one go to a new node, and so on.

    Args:
        side: where the new nodes hang: (a b c d) becomes (a (b (c d))) with "right", (((a b) c) d) with "left".

    Returns:
        The forest, and for each of its nodes the node that it was; -1 for a new one.

    Raises:
        ArgumentError: another side.

    Example:
        >>> for side in ("right", "left"):
        ...     two, origin = binarise(Forest.from_depths([0, 1, 1, 1, 1]), side)
        ...     two.parents.tolist(), two.slots.tolist(), origin.tolist()
        ([-1, 0, 0, 2, 2, 4, 4], [-1, 0, 1, 0, 1, 0, 1], [0, 1, -1, 2, -1, 3, 4])
        ([-1, 0, 1, 2, 2, 1, 0], [-1, 0, 0, 0, 1, 1, 1], [0, -1, -1, 1, 2, 3, 4])
    """
    if side not in SIDES:
        raise ArgumentError(f"side is {side!r}: {nearest(side, SIDES)}")
    above, last_slot = forest.above, int(side == "right")
    child = np.flatnonzero((above >= 0) & (forest.counts[above] > 2))
    child = child[np.lexsort((forest.slots[child] * (1 if side == "right" else -1), above[child]))]
    parent = above[child]
    turn, last = places(parent), forest.counts[parent] - 1  # families; in each, the child that leaves first is first
    inner = np.flatnonzero((turn > 0) & (turn < last))

    # For each inner child there is a new node. It is numbered before this child (right), or before the eldest (left),
    # so that nodes in the order of brackets stay in it.
    eldest = child if side == "right" else np.repeat(child[turn == last], last[turn == last] + 1)
    before = eldest[inner]
    order = np.argsort(before, kind="stable")
    made = np.full(len(child), -1)
    made[inner[order]] = before[order] + np.arange(len(inner))
    node = np.arange(forest.nodes)
    number = node + np.searchsorted(before[order], node, side="right")

    total = forest.nodes + len(inner)
    parents, slots, origin = np.full(total, -1), np.full(total, last_slot), np.full(total, -1)
    parents[number] = np.where(above >= 0, number[above], -1)
    parents[number[child]] = np.where(turn == 0, number[parent], np.where(turn == last, np.roll(made, 1), made))
    parents[made[inner]] = np.where(turn[inner] == 1, number[parent[inner]], made[inner - 1])
    slots[number] = forest.slots
    slots[number[child]] = np.where(turn == last, last_slot, 1 - last_slot)
    origin[number] = node
    sizes = forest.sizes + np.bincount(forest.tree_of[child[inner]], minlength=len(forest))
    return Forest.from_flat(_local(parents, sizes), sizes, slots), origin


def _local(parents: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Parents numbered through all trees, numbered in each."""
    return np.where(parents >= 0, parents - np.repeat(sizes.cumsum() - sizes, sizes), -1)
