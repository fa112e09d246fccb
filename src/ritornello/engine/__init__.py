"""The engine: unfolds any cell over any structure. It knows no cell, and a cell knows no loop."""

from ritornello.engine.adjoint import Randomized, Truncated
from ritornello.engine.explanation import explain
from ritornello.engine.unfold import Unfold

__all__ = ["Randomized", "Truncated", "Unfold", "explain"]
