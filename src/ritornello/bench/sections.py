"""The questions, a function each. Each gives its rows as they are measured; checks come before clocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ritornello.bench import scan
from ritornello.bench.ceiling import Ceiling
from ritornello.bench.check import Oracle
from ritornello.bench.clock import interleave
from ritornello.bench.contenders import (
    DENSE,
    LOOP,
    NN,
    OURS,
    PADDED,
    PLAIN,
    SCAN,
    Answer,
    Case,
    Contender,
    loop,
    make_case,
    ours,
    torch_nn,
)
from ritornello.bench.first_call import first_calls
from ritornello.bench.roster import Entry
from ritornello.bench.settings import DTYPES, Settings, Shape
from ritornello.bench.steps import step_of
from ritornello.bench.stream import WALKERS
from ritornello.cells import Cell
from ritornello.executors import EXECUTORS, Request, choose
from ritornello.program import Program, Untraceable, simplify, trace, unroll
from ritornello.program.linear import scanned
from ritornello.program.program import INPUT, PARAMETER, products
from ritornello.program.show import element_cost
from ritornello.structures import chain

FORWARD, BOTH = "forward", "forward+backward"
STEPS = 100  # of a stream, timed together
Watch = Callable[[str], None]


@dataclass(eq=False)
class Row:
    """One case: a cell, a shape, a pass.

    Attributes:
        section: "dense", "ragged" or "long".
        shape: (steps, sequences, units).
        cell: its name.
        what: "forward" or "forward+backward".
        tokens: steps of all sequences.
        flops: of the products that the equations ask for; thrice with backward.
        products: their share of all that the equations compute, element-wise work counted in multiplications.
        executor: who ran it.
        notes: what is to be said of contenders, by name.
        differences: the largest relative difference from the loop, by contender.
        times: by contender: least and middle milliseconds, calls, GFLOP/s; "ceiling" is the fastest product.
        compile_s: seconds that XLA compiled for, not timed with the calls.
        per_token: in the ragged section, ritornello's time for a token against that of the dense run.
    """

    section: str
    shape: Shape
    cell: str
    what: str
    tokens: int
    flops: float
    products: float
    executor: str
    notes: dict[str, str]
    differences: dict[str, float]
    times: dict[str, dict[str, float]] = field(default_factory=dict)
    compile_s: float | None = None
    per_token: float | None = None

    @property
    def share(self) -> float:
        """Of the ceiling's rate."""
        return self.times[OURS]["gflops"] / self.times["ceiling"]["gflops"]

    def ratio(self, other: str) -> float | None:
        """How many times longer the other takes."""
        return self.times[other]["best_ms"] / self.times[OURS]["best_ms"] if other in self.times else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        ratios = {name: self.ratio(name) for name in (NN, PADDED, LOOP, PLAIN, SCAN)}
        return {**vars(self), "share": self.share, "ratios": ratios}


def dense(settings: Settings, entries: list[Entry], ceiling: Ceiling, watch: Watch) -> Iterator[list[Row]]:
    """How fast is a cell over a padded batch? Rows of one shape at a time."""
    for shape in settings.shapes:
        yield [row for entry in entries for row in _measure("dense", settings, entry, shape, None, ceiling, watch)]


def ragged(settings: Settings, entries: list[Entry], ceiling: Ceiling, watch: Watch) -> Iterator[list[Row]]:
    """What do sequences of different lengths cost, in all and a token?"""
    assert settings.ragged is not None
    time, batch, _ = settings.ragged
    generator = torch.Generator().manual_seed(settings.seed)
    lengths = torch.randint(max(time // 10, 1), time + 1, (batch,), generator=generator)
    shape = settings.ragged
    yield [row for entry in entries for row in _measure("ragged", settings, entry, shape, lengths, ceiling, watch)]


def long(settings: Settings, entries: list[Entry], ceiling: Ceiling, watch: Watch) -> Iterator[list[Row]]:
    """How fast do cells that are linear in their state scan a few long sequences?"""
    assert settings.long is not None
    linear = [entry for entry in entries if is_linear(entry.make(8, 8))]
    yield [row for entry in linear for row in _measure("long", settings, entry, settings.long, None, ceiling, watch)]


def first_call(settings: Settings, entries: list[Entry], watch: Watch) -> Iterator[dict[str, Any]]:
    """How long does the first call of a cell take that the process has not seen?"""
    for entry in entries:
        watch(f"first call of {entry.name}")
        yield first_calls(entry.name, settings)


def bfloat16(settings: Settings, entries: list[Entry], watch: Watch) -> Iterator[dict[str, Any]]:
    """How much faster are rows in bfloat16 than in float32, where there is work for it?

    Each of both is checked by itself: they are not the same numbers.
    """
    for shape in settings.bfloat16:
        for entry in entries:
            watch(f"bfloat16, {entry.name} at {','.join(map(str, shape))}")
            calls = {}
            for name in ("float32", "bfloat16"):
                case = make_case(entry.make, shape, executor=settings.executor, seed=settings.seed, dtype=DTYPES[name])
                contender = ours(case)
                verify(case, [contender])
                calls[name] = contender.both
            times = interleave(calls, settings.seconds)
            found = {f"{name}_ms": 1e3 * each.best for name, each in times.items()}
            yield {"cell": entry.name, "shape": shape, **found, "ratio": times["float32"].best / times["bfloat16"].best}


def streaming(settings: Settings, entries: list[Entry], watch: Watch) -> Iterator[dict[str, Any]]:
    """What does one step of one row cost from Python, beside torch's own cell and beside calling the cell itself?

    The notes say why a walker is left out.
    """
    for entry in entries:
        watch(f"streaming, {entry.name}")
        case = make_case(entry.make, (STEPS, 1, settings.streaming), seed=settings.seed, dtype=DTYPES[settings.dtype])
        found = {name: walker(case) for name, walker in WALKERS.items()}
        walks = {name: walk for name, walk in found.items() if not isinstance(walk, str)}
        oracle = Oracle(case, backward=False)
        for name, walk in walks.items():
            oracle.agree(f"streaming by {name} with {entry.name}", Answer(torch.stack(walk()), {}), name != OURS)
        times = interleave({name: partial(walk, keep=False) for name, walk in walks.items()}, settings.seconds)
        us = {name: 1e6 * each.best / STEPS for name, each in times.items()}
        notes = {name: why for name, why in found.items() if isinstance(why, str)}
        yield {"cell": entry.name, "units": settings.streaming, "us": us, "notes": notes}


def _measure(
    section: str,
    settings: Settings,
    entry: Entry,
    shape: Shape,
    lengths: Tensor | None,
    ceiling: Ceiling,
    watch: Watch,
) -> Iterator[Row]:
    label = f"{entry.name} at {','.join(map(str, shape))}"
    watch(f"{label}: check")
    make = partial(make_case, entry.make, shape, executor=settings.executor, seed=settings.seed)
    case = make(lengths=lengths, dtype=DTYPES[settings.dtype])
    executor, why = _executor(case)
    contenders = _contenders(case, settings, section)
    differences = verify(case, contenders)
    notes = {c.name: c.note for c in contenders if c.note} | ({OURS: why} if why else {})
    compiled = next((c.compile_s for c in contenders if c.compile_s is not None), None)
    flops = 2.0 * case.tokens * weights_read(case.cell)
    for what in (FORWARD, BOTH) if settings.backward else (FORWARD,):
        watch(f"{label}: {what}")
        count = flops if what == FORWARD else 3 * flops
        calls: dict[str, Callable[[], Any]] = {c.name: c.forward if what == FORWARD else c.both for c in contenders}
        times = interleave({**calls, "ceiling": ceiling.call}, settings.seconds)
        products = flops / (flops + case.tokens * elementwise(case.cell))
        row = Row(section, shape, entry.name, what, case.tokens, count, products, executor, notes, differences)
        row.times = {
            name: {
                "best_ms": 1e3 * each.best,
                "median_ms": 1e3 * each.median,
                "calls": len(each.seconds),
                "gflops": _done(name, case, count, ceiling) / each.best / 1e9,
            }
            for name, each in times.items()
        }
        if DENSE in times:
            row.per_token = times[OURS].best / times[DENSE].best * shape[0] * shape[1] / case.tokens
        row.compile_s = None if compiled is None else compiled[what == BOTH]
        yield row


def _contenders(case: Case, settings: Settings, section: str) -> list[Contender]:
    """All that can run the case, ritornello first."""
    found: list[Contender | None] = [ours(case), torch_nn(case)]
    found += (
        [loop(case, plain=True), *([loop(case)] if step_of(case.cell) else [])] if section == "long" else [loop(case)]
    )
    if case.lengths is not None:
        found += [ours(replace(case, lengths=None), DENSE), torch_nn(case, packed=False)]
    if settings.scan and scan.version():
        found.append(scan.lax_scan(case, settings.threads))
    return [contender for contender in found if contender is not None]


def _done(name: str, case: Case, flops: float, ceiling: Ceiling) -> float:
    """Useful operations of a call: those that the equations ask for, at no more steps than there are."""
    if name == "ceiling":
        return ceiling.flops
    return flops * case.x.shape[0] * case.x.shape[1] / case.tokens if name == DENSE else flops


def verify(case: Case, contenders: list[Contender]) -> dict[str, float]:
    """The largest relative difference of each contender from the loop.

    Raises:
        Mismatch: one beyond the tolerance.
    """
    oracle = Oracle(case)
    found = {}
    for contender in contenders:
        if case.lengths is not None and contender.name in (DENSE, PADDED):
            contender.both()
            contender.forward()
            continue  # they run on where the sequences end
        where = f"{contender.name} at {tuple(case.x.shape)} with {type(case.cell).__name__}"
        found[contender.name] = oracle.agree(where, contender.answer(contender.both()), contender.name != OURS)
        oracle.agree(f"{where}, forward alone,", Answer(contender.outputs(contender.forward()), {}))
    return found


def weights_read(cell: Cell) -> int:
    """Weights that a step multiplies by, counted in the cell's program; of a cell that has none, all its matrices.

    >>> from ritornello import GRU, LSTM
    >>> weights_read(LSTM(3, 4)) == 4 * 4 * (3 + 4), weights_read(GRU(3, 4, reset="before")) == 3 * 4 * (3 + 4)
    (True, True)
    """
    program = _program(cell)
    if program is None:
        return sum(parameter.numel() for parameter in cell.parameters() if parameter.dim() == 2)
    affine = [node for node in program.nodes if node.op == "affine" and node.rate > PARAMETER]
    return sum(node.size * program.nodes[value].size for node in affine for value, _, _ in products(node))


def elementwise(cell: Cell) -> float:
    """What a step computes element by element, in multiplications; 0 of a cell that has no program.

    >>> from ritornello import Elman
    >>> elementwise(Elman(3, 4)) > 0
    True
    """
    program = _program(cell)
    return 0.0 if program is None else sum(element_cost(node, program) for node in program.nodes if node.rate >= INPUT)


def is_linear(cell: Cell) -> bool:
    """Whether a cell is found to be linear in its state; its outputs may follow from it by products, as an LRU's do.

    >>> from ritornello import GRU
    >>> from ritornello.cells import SRU
    >>> is_linear(SRU(3, 4)), is_linear(GRU(3, 4))
    (True, False)
    """
    program = _program(cell)
    return program is not None and any(node.op == "state" for node in program.nodes) and scanned(program) is not None


def _program(cell: Cell) -> Program | None:
    like = next(cell.parameters(), torch.zeros(()))
    try:
        return simplify(unroll(trace(cell, cell.input_size, cell.state_sizes, like), 1))
    except Untraceable:
        return None


def _executor(case: Case) -> tuple[str, str]:
    """Who runs the case, and why it is not the first choice."""
    time, batch, size = case.x.shape
    cell = case.cell
    rows = case.x.reshape(-1, size)
    request = Request(cell, rows, cell.zero_state(batch, rows), cell.zero_state(1, rows), chain(time, batch))
    chosen = choose(case.executor, request)
    reasons = [reason for executor in EXECUTORS.values() if (reason := executor.supports(request)) is not None]
    return chosen.name, f"{chosen.name}: {reasons[0]}" if case.executor == "auto" and reasons else ""
