"""Cells: a cell a file, each reads like the paper's equations."""

from ritornello.cells.adapt import Adapted
from ritornello.cells.catalogue import CELLS, find, is_foreign
from ritornello.cells.cell import Cell, meaning_of_total, over_predecessors, total
from ritornello.cells.elman import Elman
from ritornello.cells.gru import GRU
from ritornello.cells.lstm import LSTM

__all__ = [
    "CELLS",
    "GRU",
    "LSTM",
    "Adapted",
    "Cell",
    "Elman",
    "find",
    "is_foreign",
    "meaning_of_total",
    "over_predecessors",
    "total",
]
