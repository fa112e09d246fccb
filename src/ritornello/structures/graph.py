"""Acyclic graphs: a node may precede several others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ritornello.errors import ArgumentError
from ritornello.structures.acyclic import Acyclic, places, ranges, whole


@dataclass(frozen=True, eq=False)
class Graphs(Acyclic):
    """A batch of directed acyclic graphs, each with one node that precedes none: its state is the graph's.

    Attributes:
        sizes, heights, counts: see `Acyclic`.
        edge_sizes: (graphs,) how many edges each graph has.
        before, after: (edges,) the two nodes of each edge, numbered from 0 in each graph.
        slots: (edges,) which predecessor of `after` this is.

    Example:
        >>> diamond = Graphs.from_predecessors([[[], [0], [0], [1, 2]]])
        >>> diamond.heights.tolist(), diamond.roots.tolist()
        ([0, 1, 1, 2], [3])
        >>> [level.source.tolist() for level in diamond.schedule().levels]
        [[[1]], [[2], [2]], [[3, 4]]]
    """

    edge_sizes: np.ndarray
    before: np.ndarray
    after: np.ndarray
    slots: np.ndarray

    words = ("Graph", "predecessor", "predecessors")

    @classmethod
    def from_predecessors(cls, graphs: Sequence[Sequence[Sequence[int]]]) -> Graphs:
        """Graphs from lists of predecessors.

        Args:
            graphs: for each graph and each of its nodes the nodes that precede it, numbered from 0 in the graph, in
                the order of the slots; -1 leaves a slot empty.

        Raises:
            ArgumentError: a graph without nodes, a predecessor that is no node, a cycle, or not just one node that
                precedes none.
        """
        sizes = np.array([len(graph) for graph in graphs], np.int64)
        degrees = np.array([len(node) for graph in graphs for node in graph], np.int64)
        before = whole([other for graph in graphs for node in graph for other in node], "predecessors")
        graph_of = np.repeat(np.arange(len(sizes)), sizes)
        starts = sizes.cumsum() - sizes
        after = np.repeat(np.arange(len(degrees)), degrees)  # through all graphs
        _check(before, graph_of[after], sizes)
        edges = np.flatnonzero(before >= 0)
        slots, before, after = places(after)[edges], before[edges], after[edges]
        offset = starts[graph_of[after]]
        counts = np.bincount(after, minlength=len(degrees))
        heights, late = _heights(before + offset, after, counts)
        if late is not None:
            graph = graph_of[late]
            raise ArgumentError(f"Graph {graph} has a cycle, and node {late - starts[graph]} lies on it or after it.")
        edge_sizes = np.bincount(graph_of[after], minlength=len(sizes))
        found = cls(sizes, heights, counts, edge_sizes, before, after - offset, slots)
        ends = np.bincount(graph_of[found.roots], minlength=len(sizes))
        if (ends != 1).any():
            graph = int((ends != 1).argmax())
            raise ArgumentError(f"Graph {graph} has {ends[graph]} nodes that precede none; a graph has one.")
        return found

    def __getitem__(self, graphs: Any) -> Graphs:
        chosen = self._chosen(graphs)
        nodes, sizes = self.nodes_of(chosen), self.edge_sizes[chosen]
        edges = ranges((self.edge_sizes.cumsum() - self.edge_sizes)[chosen], sizes)
        arrays = (array[edges] for array in (self.before, self.after, self.slots))
        return Graphs(self.sizes[chosen], self.heights[nodes], self.counts[nodes], sizes, *arrays)

    def edges(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        offset = np.repeat(self.starts, self.edge_sizes)
        return self.before + offset, self.after + offset, self.slots


def _check(before: np.ndarray, graph_of: np.ndarray, sizes: np.ndarray) -> None:
    """graph_of: (edges,)."""
    if not sizes.all():
        raise ArgumentError(f"Graph {(sizes == 0).argmax()} is empty; a graph has a node at least.")
    strange = np.flatnonzero((before < -1) | (before >= sizes[graph_of]))
    if len(strange):
        edge = strange[0]
        raise ArgumentError(
            f"Graph {graph_of[edge]}: predecessor {before[edge]} is no node; they lie in 0 to "
            f"{sizes[graph_of[edge]] - 1}, and -1 is an empty slot."
        )


def _heights(before: np.ndarray, after: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, int | None]:
    """The longest way from a node without predecessors to each node, or a node that a cycle keeps from being reached.

    All nodes whose predecessors are done come in one round, so an edge is walked once.
    """
    degrees = np.bincount(before, minlength=len(counts))
    firsts = degrees.cumsum() - degrees
    successors = after[np.argsort(before, kind="stable")]
    heights, waiting = np.zeros_like(counts), counts.copy()
    ready, height = np.flatnonzero(waiting == 0), 0
    while len(ready):
        heights[ready] = height
        reached = successors[ranges(firsts[ready], degrees[ready])]
        np.subtract.at(waiting, reached, 1)
        ready, height = np.unique(reached[waiting[reached] == 0]), height + 1
    late = np.flatnonzero(waiting)
    return heights, int(late[0]) if len(late) else None
