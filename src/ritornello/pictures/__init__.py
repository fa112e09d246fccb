"""Pictures, drawn by matplotlib: `pip install ritornello[pictures]`."""

from ritornello.pictures.figure import KINDS, check_place, save
from ritornello.pictures.tree import draw_tree

__all__ = ["KINDS", "check_place", "draw_tree", "save"]
