"""Structures: who precedes whom, as schedules of levels."""

from ritornello.structures.acyclic import Acyclic
from ritornello.structures.chain import chain
from ritornello.structures.graph import Graphs
from ritornello.structures.reshape import binarise, collapse, preorder, spans, subtree_sizes
from ritornello.structures.schedule import Level, Schedule, from_rows, to_rows
from ritornello.structures.segment import is_chain, row_entries, row_levels, row_sources, segments
from ritornello.structures.tree import AnyTrees, Forest, batch_of, forest

__all__ = [
    "Acyclic",
    "AnyTrees",
    "Forest",
    "Graphs",
    "Level",
    "Schedule",
    "batch_of",
    "binarise",
    "chain",
    "collapse",
    "forest",
    "from_rows",
    "is_chain",
    "preorder",
    "row_entries",
    "row_levels",
    "row_sources",
    "segments",
    "spans",
    "subtree_sizes",
    "to_rows",
]
