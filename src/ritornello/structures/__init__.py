"""Structures: who precedes whom, as schedules of levels."""

from ritornello.structures.chain import chain
from ritornello.structures.schedule import Level, Schedule, from_rows, to_rows
from ritornello.structures.tree import forest

__all__ = ["Level", "Schedule", "chain", "forest", "from_rows", "to_rows"]
