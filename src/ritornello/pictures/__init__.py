"""Pictures, drawn by matplotlib: `pip install ritornello[pictures]`."""

from ritornello.pictures.figure import KINDS, save
from ritornello.pictures.tree import draw_tree

__all__ = ["KINDS", "draw_tree", "save"]
