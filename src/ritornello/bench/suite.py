"""The whole benchmark: header, sections, goals."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from ritornello import processor
from ritornello.bench import machine, scan, sections
from ritornello.bench.ceiling import find_ceiling, region_cost
from ritornello.bench.goals import Goal, judge
from ritornello.bench.roster import entries
from ritornello.bench.sections import Row
from ritornello.bench.settings import DTYPES, Settings
from ritornello.errors import ArgumentError, nearest
from ritornello.executors import check_name


class Watch(Protocol):
    """Is told how it goes."""

    def doing(self, what: str, fraction: float) -> None:
        """What is being done, and how much of all is behind."""

    def header(self, facts: dict[str, Any]) -> None:
        """On what is measured."""

    def rows(self, rows: list[Row]) -> None:
        """Rows that belong together."""

    def first_call(self, found: list[dict[str, Any]]) -> None:
        """The first calls of all cells."""

    def bfloat16(self, found: list[dict[str, Any]]) -> None:
        """bfloat16 against float32."""

    def streaming(self, found: list[dict[str, Any]]) -> None:
        """Steps of one row."""

    def goals(self, goals: list[Goal]) -> None:
        """What was promised."""

    def drift(self, least: float, most: float) -> None:
        """Between which rates, in GFLOP/s, the fastest product moved while all was measured."""


def run(settings: Settings, watch: Watch) -> dict[str, Any]:
    """Measures, and tells the watcher as it goes.

    Returns:
        All that was found, for JSON: header, rows, bfloat16, streaming, first_call, goals.

    Raises:
        ArgumentError: settings that do not fit.
        Mismatch: contenders that do not compute the same.
    """
    if settings.dtype not in DTYPES:
        raise ArgumentError(f"Unknown dtype {settings.dtype!r}: {nearest(settings.dtype, DTYPES)}.")
    if not 0 < settings.seconds < float("inf"):
        raise ArgumentError(f"seconds is {settings.seconds}; it must be a positive number.")
    if settings.threads < 1:
        raise ArgumentError(f"threads is {settings.threads}; it must be at least 1.")
    for shape in (*settings.shapes, *settings.bfloat16, *filter(None, [settings.ragged, settings.long])):
        if min(shape) < 1:
            raise ArgumentError(f"The shape {shape} must be positive: steps, sequences, units.")
    if settings.bfloat16 and not processor.has_bfloat16():
        here = processor.instruction_set() or "no extension"
        raise ArgumentError(f"There are no instructions for bfloat16 here ({here}): leave --bfloat16 out.")
    check_name(settings.executor)
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        return _run(settings, watch)
    finally:
        torch.set_num_threads(before)


def _run(settings: Settings, watch: Watch) -> dict[str, Any]:
    cells = entries(list(settings.cells), settings.everyone)
    parts = len(settings.shapes) + (settings.ragged is not None) + (settings.long is not None)
    parts_more = len(settings.bfloat16) + bool(settings.streaming) + settings.first_call
    calls = len(cells) * (parts * (2 + settings.backward) + parts_more)
    done = 0

    def doing(what: str) -> None:
        nonlocal done
        watch.doing(what, done / max(calls, 1))
        done += 1

    watch.doing("the fastest matrix product", 0.0)
    ceiling = find_ceiling(DTYPES[settings.dtype], 2 * settings.seconds)
    header = {
        **machine.about(),
        "jax": scan.version() if settings.scan else None,
        "dtype": settings.dtype,
        "seed": settings.seed,
        "seconds": settings.seconds,
        "ceiling": {
            "call": f"{ceiling.name} {ceiling.size[0]}×{ceiling.size[1]} by {ceiling.size[1]}×{ceiling.size[2]}",
            "gflops": ceiling.rate / 1e9,
            "others": {name: rate / 1e9 for name, rate in ceiling.others.items()},
        },
        "hand_over_us": None if (cost := region_cost(settings.threads)) is None else 1e6 * cost,
    }
    watch.header(header)
    rows: list[Row] = []
    for part in sections.dense(settings, cells, ceiling, doing):
        watch.rows(part)
        rows += part
    if settings.ragged is not None:
        for part in sections.ragged(settings, cells, ceiling, doing):
            watch.rows(part)
            rows += part
    if settings.long is not None:
        for part in sections.long(settings, cells, ceiling, doing):
            watch.rows(part)
            rows += part
    halves = list(sections.bfloat16(settings, cells, doing))
    if halves:
        watch.bfloat16(halves)
    steps = list(sections.streaming(settings, cells, doing)) if settings.streaming else []
    if steps:
        watch.streaming(steps)
    first = list(sections.first_call(settings, cells, doing)) if settings.first_call else []
    if first:
        watch.first_call(first)
    rates = [ceiling.rate / 1e9, *(row.times["ceiling"]["gflops"] for row in rows)]
    goals = judge(rows, halves, steps, first, max(rates))
    watch.goals(goals)
    watch.drift(min(rates), max(rates))
    return {
        "header": header,
        "rows": [row.as_dict() for row in rows],
        "ceiling_gflops": {"least": min(rates), "most": max(rates)},
        "bfloat16": halves,
        "streaming": steps,
        "first_call": first,
        "goals": [goal._asdict() for goal in goals],
    }
