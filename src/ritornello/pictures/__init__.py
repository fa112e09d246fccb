"""Pictures, drawn by matplotlib: `pip install ritornello[pictures]`."""

from ritornello.pictures.figure import KINDS, check_picture, save
from ritornello.pictures.tree import draw_tree

__all__ = ["KINDS", "check_picture", "draw_tree", "save"]
