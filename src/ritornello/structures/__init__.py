"""Structures: who precedes whom, as schedules of levels."""

from ritornello.structures.chain import chain
from ritornello.structures.schedule import Level, Schedule
from ritornello.structures.tree import forest

__all__ = ["Level", "Schedule", "chain", "forest"]
