"""What was promised, and whether it holds: a goal a function, each says "not measured" where its rows are missing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ritornello.bench.contenders import LOOP, NN, OURS, PLAIN, SCAN
from ritornello.bench.roster import ROSTER
from ritornello.bench.sections import BOTH, Row
from ritornello.bench.settings import Shape
from ritornello.cells import CELLS


class Goal(NamedTuple):
    """A goal.

    Attributes:
        name: what is promised.
        holds: None where it was not measured.
        found: what was measured, the worst first.
    """

    name: str
    holds: bool | None
    found: str


class Measured(NamedTuple):
    """All there is to judge by.

    Attributes:
        rows: of forward + backward.
        bfloat16: beside float32.
        streaming: steps of one row.
        first: of the first calls.
        best: the best rate of a product in the whole run, GFLOP/s.
    """

    rows: list[Row]
    bfloat16: list[dict[str, Any]]
    streaming: list[dict[str, Any]]
    first: list[dict[str, Any]]
    best: float

    def dense(self) -> list[Row]:
        rest = CELLS.keys() - ROSTER.keys()  # of the catalogue, which has goals of its own
        return [row for row in self.rows if row.section == "dense" and row.cell not in rest]


Found = Iterable[dict[str, Any]]


def judge(rows: Iterable[Row], bfloat16: Found, streaming: Found, first: Found, best: float) -> list[Goal]:
    """All goals."""
    both = [row for row in rows if row.what == BOTH]
    measured = Measured(both, list(bfloat16), list(streaming), list(first), best)
    return [goal for each in GOALS for goal in each(measured)]


def large(m: Measured) -> list[Goal]:
    """Shares of the ceiling where there is work for it."""
    rows = [row for row in m.dense() if row.shape[2] >= 128 and row.shape[1] >= 32]
    easy = [row for row in rows if row.cell not in HARD]
    hard = [row for row in rows if row.cell in HARD]
    return [
        _least("gated cells, H ≥ 128, B ≥ 32: at least 0.90 of the ceiling", easy, 0.90, m.best),
        _least("Elman and layer norm there: at least 0.85", hard, 0.85, m.best),
    ]


def catalogue(m: Measured) -> list[Goal]:
    """Every cell of the catalogue."""
    rows = [row for row in m.rows if row.section == "dense" and row.shape[1:] == (32, 256) and row.cell in CELLS]
    if {row.cell for row in rows} != set(CELLS):
        rows = []
    mostly, rest = [row for row in rows if row.products >= 0.9], [row for row in rows if row.products < 0.9]
    slow = [(row, ratio) for row, ratio in _ratios(m.rows, PLAIN) if row.section == "long"]
    return [
        _least("whole catalogue, B 32, H 256, products 90 % of the work: at least 0.85", mostly, 0.85, m.best),
        _least("whole catalogue, products less: at least 0.70", rest, 0.70, m.best),
        _ratio("cells linear in the state against a loop that calls them, T 10,000, B 4: 20 times", slow, 20.0),
    ]


def small(m: Measured) -> list[Goal]:
    """Shares of the ceiling where there is little work for it."""
    return [
        _least(
            f"gated cells at {','.join(map(str, shape))}: at least {bound}",
            [row for row in m.dense() if row.shape == shape and row.cell != "elman"],
            bound,
            m.best,
        )
        for shape, bound in (((100, 128, 64), 0.75), ((256, 1, 128), 0.5))
    ]


def against_torch(m: Measured) -> list[Goal]:
    """torch.nn's own cells."""
    found = []
    for cell, module, mean, least in (("lstm", "LSTM", 1.4, 1.0), ("gru", "GRU", 4.0, 0.0), ("elman", "RNN", 4.0, 0.0)):
        rows = [(row, ratio) for row, ratio in _ratios(m.dense(), NN) if row.cell == cell]
        if least:
            found.append(_ratio(f"{cell} against nn.{module}: not slower at any shape", rows, least))
        name = f"{cell} against nn.{module}: {mean:g} times in the geometric mean"
        if not rows:
            found.append(Goal(name, None, "not measured"))
            continue
        reached = math.exp(sum(math.log(ratio) for _, ratio in rows) / len(rows))
        found.append(Goal(name, reached >= mean, f"{reached:.2f} over {len(rows)} shapes"))
    return found


def against_loop(m: Measured) -> list[Goal]:
    """The Python loop, for cells that torch.nn lacks."""
    rows = [(row, ratio) for row, ratio in _ratios(m.dense(), LOOP) if row.cell not in ("lstm", "gru", "elman")]
    many = [(row, ratio) for row, ratio in rows if row.shape[1] >= 32]
    one = [(row, ratio) for row, ratio in rows if row.shape[1] == 1]
    return [
        _ratio("other cells against their Python loop, B ≥ 32: 4 times", many, 4.0),
        _ratio("other cells against their Python loop, B = 1: 20 times", one, 20.0),
    ]


def against_scan(m: Measured) -> list[Goal]:
    """`lax.scan`."""
    rows = _ratios(m.dense(), SCAN)
    return [
        _ratio("any cell against lax.scan, B > 1: 4 times", [p for p in rows if p[0].shape[1] > 1], 4.0),
        _ratio("any cell against lax.scan, B = 1: 2 times", [p for p in rows if p[0].shape[1] == 1], 2.0),
    ]


def ragged(m: Measured) -> list[Goal]:
    """Sequences of different lengths."""
    rows = [row for row in m.rows if row.section == "ragged"]
    packed = [pair for pair in _ratios(rows, NN) if pair[0].cell == "lstm"]
    name = "ragged: a token costs at most 10 % more than in the dense batch"
    costs = [(row.per_token, row) for row in rows if row.per_token is not None]
    if not costs:
        dearest = Goal(name, None, "not measured")
    else:
        cost, row = max(costs, key=lambda pair: pair[0])
        dearest = Goal(name, cost <= 1.10, f"{100 * (cost - 1):+.0f} %, {row.cell}")
    return [_ratio("ragged lstm against packed nn.LSTM: 50 times", packed, 50.0), dearest]


def halves(m: Measured) -> list[Goal]:
    """Rows in bfloat16."""
    wide = [each for each in m.bfloat16 if each["shape"][2] >= 256]
    found = [(each["ratio"], f"{each['ratio']:.2f}, {_at(each['cell'], each['shape'])}") for each in wide]
    return [_worst("bfloat16 against float32, H ≥ 256: 1.6 times", found, 1.6)]


def streams(m: Measured) -> list[Goal]:
    """One row, step by step."""
    name = "streaming step, one row, H = 128: 8 times as fast as nn.LSTMCell"
    for each in m.streaming:
        if each["cell"] == "lstm" and each["units"] == 128 and {OURS, NN} <= set(each["us"]):
            ratio = each["us"][NN] / each["us"][OURS]
            return [Goal(name, ratio >= 8, f"{ratio:.2f}: {each['us'][OURS]:.1f} µs against {each['us'][NN]:.1f}")]
    return [Goal(name, None, "not measured")]


def first_call(m: Measured) -> list[Goal]:
    """Cells that the process has not seen."""
    name = "first call of a new cell: under 50 ms"
    if not m.first:
        return [Goal(name, None, "not measured")]
    slowest = max(m.first, key=lambda each: each["first_ms"])
    return [Goal(name, slowest["first_ms"] < 50, f"{slowest['first_ms']:.0f} ms, {slowest['cell']}")]


HARD = ("elman", "layer-norm")
GOALS: tuple[Callable[[Measured], list[Goal]], ...] = (
    *(large, catalogue, small, against_torch, against_loop, against_scan, ragged, halves, streams, first_call),
)


def _ratios(rows: Iterable[Row], other: str) -> list[tuple[Row, float]]:
    return [(row, ratio) for row in rows if (ratio := row.ratio(other)) is not None]


def _least(name: str, rows: list[Row], bound: float, best: float) -> Goal:
    """Shares of the ceiling, beside it and (in brackets) against its best rate in the whole run."""
    found = [
        (
            row.share,
            f"{row.share:.2f} ({row.times[OURS]['gflops'] / best:.2f} of the run's best), {_at(row.cell, row.shape)}",
        )
        for row in rows
    ]
    return _worst(name, found, bound)


def _ratio(name: str, rows: list[tuple[Row, float]], bound: float) -> Goal:
    return _worst(name, [(ratio, f"{ratio:.2f}, {_at(row.cell, row.shape)}") for row, ratio in rows], bound)


def _worst(name: str, cases: list[tuple[float, str]], bound: float) -> Goal:
    """Whether all cases reach the bound; each is a value and what to say of it."""
    if not cases:
        return Goal(name, None, "not measured")
    missed = sum(value < bound for value, _ in cases)
    _, found = min(cases, key=lambda case: case[0])
    return Goal(name, not missed, found + (f"; missed in {missed} of {len(cases)} cases" if missed else ""))


def _at(cell: str, shape: Shape) -> str:
    return f"{cell} at {','.join(map(str, shape))}"
