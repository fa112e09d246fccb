"""Timing: contenders take turns, so that a machine that grows slower or faster does so for all of them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

TURNS = 10  # that the budget is divided into; whoever is too slow for that has fewer
LEAST = 3  # turns, and calls a turn of whoever is quick enough


@dataclass
class Times:
    """Seconds of each call."""

    seconds: list[float]

    @property
    def best(self) -> float:
        """The least."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)


def interleave(calls: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, Times]:
    """Times calls in turns, each as often as a turn's share of the time allows and at least once a turn.

    Args:
        calls: by name; each has been called before.
        seconds: for all of them together; three turns are taken even if that is longer.
    """
    turn = seconds / (TURNS * len(calls))
    found: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        turns = 0
        while turns < LEAST or time.perf_counter() < end:
            for name, call in calls.items():
                spent, count = 0.0, 0
                while spent < turn or (count < LEAST and spent < 4 * turn):
                    began = time.perf_counter()
                    result = call()
                    took = time.perf_counter() - began
                    del result  # outside the timed part
                    spent, count = spent + took, count + 1
                    found[name].append(took)
            turns += 1
    finally:
        if was_on:
            gc.enable()
    return {name: Times(each) for name, each in found.items()}
