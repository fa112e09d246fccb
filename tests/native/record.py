"""Records programs of the compiled machine for `make sanitize`: codes, schedules, inputs, and what must come out.

    python tests/native/record.py FOLDER

A file holds one program, lowered for one kind of run, and several schedules; driver.cpp reads it. Expected values come
from the reference executor in float64. Inputs are multiples of 1/1024, so that they are the same in float32.
"""

from __future__ import annotations

import sys
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

import ritornello as rit
from ritornello.cells import Cell, total
from ritornello.executors.chains import core_levels, core_segments
from ritornello.executors.program_cell import ProgramCell
from ritornello.executors.reference import ReferenceExecutor
from ritornello.executors.request import Request
from ritornello.program import (
    Builder,
    Joint,
    Program,
    Wants,
    derive,
    encode,
    interpret,
    lookup,
    lower,
    simplify,
    trace,
    unroll,
)
from ritornello.program.ops import ELEMENTS, OPS
from ritornello.program.program import INPUT, PARAMETER, STATE
from ritornello.structures.chain import chain
from ritornello.structures.schedule import Level, Schedule

F64 = torch.float64
SEED = 0x1234_5678_9ABC_DEF0 >> 2
UNREACHED = {"pow.sv"}  # exponents are constants, of size 1


@cache
def numbers() -> dict[str, int]:
    """The machine's number for each instruction."""
    from ritornello import _core

    return {name: number for number, name in enumerate(_core.op_names())}


def quantised(*shape: int, scale: float = 1.0) -> Tensor:
    """Random multiples of 1/1024."""
    return (torch.randn(*shape, dtype=F64) * scale * 1024).round() / 1024


# Cells that the library does not have.


class LayerNorm(Cell):
    """An Elman cell with its sum normalised, as in Ba et al. (2016)."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.W = nn.Linear(input_size, hidden_size)
        self.U = nn.Linear(hidden_size, hidden_size, bias=False)
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, x: Tensor, s: Any) -> Any:
        return self.State(torch.tanh(self.norm(self.W(x) + self.U(total(s.h)))))


class Bilinear(Cell):
    """Products of input and state: outer, and, in its adjoint, both inner ones."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.B = nn.Bilinear(input_size, hidden_size, hidden_size)

    def forward(self, x: Tensor, s: Any) -> Any:
        return self.State(torch.tanh(self.B(x, total(s.h))))


class Dropped(Cell):
    """An Elman cell with dropout on input and sum."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.W = nn.Linear(input_size, hidden_size)
        self.U = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x: Tensor, s: Any) -> Any:
        inner = nn.functional.dropout(self.W(nn.functional.dropout(x, 0.25)) + self.U(total(s.h)), 0.5)
        return self.State(torch.tanh(inner))


class Residual(Cell):
    """Fields of two sizes; x's gradient starts from that of a field whose rows nobody asks for."""

    State = namedtuple("State", "h c")

    @property
    def state_sizes(self) -> tuple[int, ...]:
        return self.hidden_size, self.input_size

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.W = nn.Linear(input_size, hidden_size)
        self.V = nn.Linear(input_size, input_size, bias=False)
        self.U = nn.Linear(hidden_size, input_size)

    def forward(self, x: Tensor, s: Any) -> Any:
        c = x + self.V(x) + 0.5 * torch.tanh(self.U(total(s.h)) + total(s.c))
        return self.State(torch.sin(self.W(c)) + 0.25 * total(s.h), c)


class Wide(Cell):
    """One sum of forty products."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.W = nn.ModuleList(nn.Linear(1, hidden_size) for _ in range(40))
        self.U = nn.Linear(hidden_size, 40)

    def forward(self, x: Tensor, s: Any) -> Any:
        parts = torch.sin(self.U(total(s.h))).split(1, -1)
        return self.State(
            torch.tanh(0.1 * sum(W(part) for W, part in zip(self.W, parts, strict=True)) + x.sum(-1, keepdim=True))
        )


class Spread(NamedTuple):
    """Vectors and numbers for ops to work on: of x, of x and the state, and positive ones."""

    b: Builder
    x: int
    y: int
    number: int
    input_number: int
    positive: int
    positive_number: int


def spread(size: int) -> Spread:
    b = Builder()
    x, h = b.leaf("x", (), (size,), INPUT), b.leaf("state", (0, 0), (size,), STATE)
    w = b.leaf("parameter", ("weight",), (size,), PARAMETER)
    y = b.mul_add(w, x, h)
    positive = b.add(b.mul(y, y), b.constant(0.5))
    number = b.mul(b.sum(h), b.constant(0.125))
    return Spread(b, x, y, number, b.mul(b.max(x), b.constant(0.5)), positive, b.mul_add(number, number, b.constant(1)))


COMPARISONS = ("gt", "ge", "lt", "le", "eq", "ne")
POSITIVE = ("log", "log1p", "sqrt", "rsqrt", "reciprocal", "div")
BACK = ("sigmoid_back", "tanh_back")


def element_ops(size: int, differentiable: bool) -> Program:
    """Every element-wise op in every form, summed up. Comparisons are of x alone: nothing rounded decides them."""
    s = spread(size)
    b, found = s.b, []
    pairs: list[tuple[Sequence[int], Sequence[int], Sequence[int]]] = [
        ((s.y, s.x), (s.x, s.x), (s.y, s.positive)),
        ((s.y, s.number), (s.x, s.input_number), (s.y, s.positive_number)),
        ((s.number, s.y), (s.input_number, s.x), (s.number, s.positive)),
    ]
    for name, op in OPS.items():
        if op.kind != ELEMENTS or name in ("where", "mul_add", "pow") or (differentiable and name in BACK):
            continue
        if name in ("neg", "abs", "sign", "relu", "sigmoid", "tanh", "erf", "softplus", "sin", "cos", "exp", "expm1"):
            arguments = [[s.x], [b.sin(s.number)]] if name == "sign" else [[s.y], [b.sin(s.number)]]
        elif name in ("log", "log1p", "sqrt", "rsqrt", "reciprocal"):
            arguments = [[s.positive], [s.positive_number]]
        else:
            column = 1 if name in COMPARISONS else 2 if name in POSITIVE else 0
            arguments = [list(pair[column]) for pair in pairs]
        for args in arguments:
            value = b.apply(name, *(b.sin(arg) if name in ("exp", "expm1") else arg for arg in args))
            found.append(value if b.size(value) == size else b.expand(value, size))
    found += [b.pow(s.positive, b.constant(1.75)), b.expand(b.pow(s.positive_number, b.constant(0.75)), size)]
    found += [b.where(b.gt(s.x, b.constant(0.25)), s.y, s.number), b.where(b.lt(s.x, s.input_number), s.number, s.x)]
    found += [b.mul_add(s.y, s.number, s.x), b.expand(b.max(s.y), size)]
    half = max(size // 2, 1)
    found.append(b.cat([b.slice(s.y, size - half, half), b.slice(s.x, 0, size - half)]) if half < size else s.y)
    whole = b.constant(0)
    for value in found:
        whole = b.mul_add(value, b.constant(0.0625), whole)
    result = b.tanh(whole)
    return Program(tuple(b.nodes), (result,), (size,), size)


class Weight(nn.Module):
    """The parameter that `element_ops` reads."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))


class Recorded(NamedTuple):
    """A cell's program for some number of predecessors.

    Attributes:
        real: whether the cell itself can be run for comparison.
        forward_only: it has no derivative.
    """

    name: str
    cell: nn.Module
    program: Program
    kind: Any
    real: bool
    forward_only: bool = False


def cells() -> Iterator[Recorded]:
    kinds: dict[str, tuple[Callable[[int, int], Cell], list[tuple[int, int]]]] = {
        "lstm": (rit.LSTM, [(1, 1), (7, 17), (33, 33), (17, 7)]),
        "gru": (rit.GRU, [(7, 7), (1, 33), (33, 17)]),
        "gru-before": (lambda i, h: rit.GRU(i, h, reset="before"), [(17, 7), (7, 33)]),
        "elman": (rit.Elman, [(1, 7), (33, 1), (17, 33)]),
        "layer-norm": (LayerNorm, [(7, 7), (33, 17)]),
        "bilinear": (Bilinear, [(7, 7), (1, 17), (17, 1)]),
        "dropout": (Dropped, [(7, 17), (33, 7)]),
        "residual": (Residual, [(7, 17), (17, 1)]),
        "wide": (Wide, [(7, 7)]),
    }
    for name, (make, sizes) in kinds.items():
        for inputs, hidden in sizes:
            cell = make(inputs, hidden).double()
            with torch.no_grad():
                for parameter in cell.parameters():
                    parameter.copy_(quantised(*parameter.shape, scale=0.5 / hidden**0.5))
            traced = trace(cell, inputs, cell.state_sizes, torch.zeros((), dtype=F64))
            slots = (1, 2, 3) if name == "lstm" and hidden == 17 else (1, 2) if hidden == 7 else (1,)
            for count in slots:
                title = f"{name}-{inputs}-{hidden}" + (f"-{count}slots" if count > 1 else "")
                program = simplify(unroll(traced, count))
                yield Recorded(title, cell, program, cell.State, real=name != "dropout")
    for size in (1, 7, 17, 33):
        for differentiable in (True, False):
            cell = Weight(size).double()
            nn.init.constant_(cell.weight, 0.75)
            program = element_ops(size, differentiable)
            program = simplify(program) if differentiable else program
            name = f"ops-{size}" + ("" if differentiable else "-all")
            yield Recorded(name, cell, program, namedtuple("State", "h"), False, not differentiable)


# Schedules.


class CoreLevels(NamedTuple):
    """What `_core.Levels` is made of."""

    entries: int
    starts: list[int]
    source: list[int]
    slots: int
    last: list[int]
    owner: list[int]


def chains(long: bool) -> dict[str, Schedule]:
    lengths = torch.tensor([3, 0, 6, 1, 0, 6, 2, 5, 4])
    resets = (torch.arange(6 * 9) * 7 % 5 == 0).view(6, 9)
    found = {
        "dense": chain(5, 3),
        "one": chain(1, 1),
        "lanes": chain(3, 26),
        "bulk": chain(4, 17),
        "reversed": chain(3, 2, reverse=True),
        "ragged": chain(6, 9, lengths=lengths),
        "resets": chain(6, 9, lengths=lengths, resets=resets, reverse=True),
        "dense-resets": chain(6, 9, resets=resets),
        "broad-resets": chain(2, 33, resets=(torch.arange(66) % 3 == 0).view(2, 33)),
        "zero-lengths": chain(4, 3, lengths=torch.zeros(3, dtype=torch.long)),
        "no-time": chain(0, 3),
        "no-batch": chain(4, 0),
        "nothing": chain(0, 0),
        "no-time-resets": chain(0, 3, resets=torch.zeros(0, 3, dtype=torch.bool)),
    }
    if long:
        found["long"] = chain(37, 15)  # more rows than a reduction adds up at once
    return found


def tangle(slots: int, entries: int = 5, levels: int = 4) -> tuple[Schedule, list[CoreLevels]]:
    """Rows with any earlier rows of their entry as predecessors; an entry has none, one or several in a level."""
    generator = torch.Generator().manual_seed(slots)
    known: list[list[int]] = [[0, 1 + entry] for entry in range(entries)]
    made, owner, row = [], [], 0
    for _ in range(levels):
        start, sources, new = row, [], []
        for entry in range(entries):
            for _ in range(int(torch.randint(0, 4, (), generator=generator)) * (entry != 2)):
                chosen = torch.randint(0, len(known[entry]), (slots,), generator=generator).tolist()
                sources.append([known[entry][i] for i in chosen])
                owner.append(entry)
                new.append((entry, 1 + entries + row))
                row += 1
        for entry, table_row in new:
            known[entry].append(table_row)
        made.append(Level(start, row, torch.tensor(sources).view(-1, slots)))
    last = torch.tensor([rows[-1] for rows in known])
    schedule = Schedule(entries, row, tuple(made), last=last)
    source = torch.cat([level.source for level in made]).flatten().tolist()
    return schedule, [CoreLevels(entries, [0, *(level.stop for level in made)], source, slots, last.tolist(), owner)]


def captured(schedule: Schedule) -> list[CoreLevels]:
    """The whole schedule, then the segments that a checkpointed run has."""
    with patch("ritornello._core.Levels", CoreLevels):
        return [core_levels(schedule), *(core_segments(schedule) if schedule.levels else [])]


# What must come out.


class Writer:
    """Words and numbers, one array a line."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("w")

    def array(self, name: str, values: Sequence[int | float] | Tensor) -> None:
        if isinstance(values, Tensor):
            values = values.flatten().tolist()
        text = " ".join(str(v) if isinstance(v, int) else f"{v:.15g}" for v in values)
        self.file.write(f"{name} {len(values)} {text}\n")


def kinds_of_run(recorded: Recorded) -> dict[str, Wants]:
    fields = len(recorded.program.fields)
    first = tuple(field == 0 for field in range(fields))
    found = {"forward": Wants(False, False, (False,) * fields)}
    if not recorded.forward_only:
        found["all"] = Wants(True, True, (True,) * fields)
        found["weights"] = Wants(True, False, first)
        if fields > 1:
            found["first"] = Wants(True, True, first)
    return found


def record(recorded: Recorded, folder: Path) -> set[str]:
    """Writes a file for each kind of run; returns the instructions that they have."""
    program, cell = recorded.program, recorded.cell
    joint = Joint(program, len(program.fields), 0, (), ()) if recorded.forward_only else derive(program)
    if program.slots > 1:
        schedules = {"tangle": tangle(program.slots), "tangle-many": tangle(program.slots, 21, 3)}
    else:
        small = max(program.inputs, *program.fields) <= 7
        schedules = {name: (each, captured(each)) for name, each in chains(small).items()}
        schedules["tangle"] = tangle(1)
    used = set()
    for kind, wants in kinds_of_run(recorded).items():
        code = lower(joint, wants)
        ints, constants = encode(code, numbers())
        used |= {step.op for steps in code.routines for step in steps if hasattr(step, "op")}
        read = code.program._replace(results=tuple(code.parameters))
        found = interpret(read, torch.zeros(0, 0, dtype=F64), [], lambda name: lookup(cell, name))
        values = {value: found[value].detach() for value in code.parameters}
        writer = Writer(folder / f"{recorded.name}-{kind}.txt")
        writer.array("ints", ints)
        writer.array("constants", [float(number) for number in constants])
        writer.array("wants", [int(wants.gradients), int(wants.x), *map(int, wants.douts)])
        writer.array("parameters", [len(values)])
        for value in values.values():
            shape = value.shape if value.dim() == 2 else (1, value.numel())
            writer.array("shape", [*shape, int(value.dim() == 2)])
            writer.array("values", value)
        writer.array("cases", [len(schedules)])
        for number, (name, (schedule, levels)) in enumerate(schedules.items()):
            writer.file.write(f"case {name}\n")
            record_case(writer, recorded, code.program, wants, values, schedule, levels, drop_last=number % 3 == 2)
        writer.file.close()
    return used


def record_case(
    writer: Writer,
    recorded: Recorded,
    program: Program,
    wants: Wants,
    values: dict[int, Tensor],
    schedule: Schedule,
    levels: list[CoreLevels],
    drop_last: bool,
) -> None:
    """One schedule: its inputs, its results, and the gradients of a random linear form of these."""
    sizes, kind = program.fields, recorded.kind
    x = quantised(schedule.rows, program.inputs)
    entry = [quantised(schedule.entries, size) for size in sizes]
    blank = [quantised(1, size) for size in sizes]
    leaves = [x, *entry, *blank, *values.values()]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    fields = len(sizes)
    given = dict(zip(values, leaves[1 + 2 * fields :], strict=True))
    asked: Any = ProgramCell(program, kind, given, SEED)
    request = Request(
        asked, leaves[0], kind(*leaves[1 : 1 + fields]), kind(*leaves[1 + fields : 1 + 2 * fields]), schedule, True
    )
    result = ReferenceExecutor().run(request)
    last = result.last if schedule.entry is None else [field[schedule.entry] for field in result.last]
    if recorded.real:
        real = Request(recorded.cell, x, kind(*entry), kind(*blank), schedule, True)
        torch.testing.assert_close([*ReferenceExecutor().run(real).rows], [*result.rows], rtol=1e-10, atol=1e-10)
    writer.array("seed", [SEED])
    writer.array("levels", [len(levels)])
    for each in levels:
        writer.array("entries", [each.entries, each.slots])
        for name in ("starts", "source", "last", "owner"):
            writer.array(name, getattr(each, name))
    for tensor in (x, *entry, *blank, *result.rows, *last):
        writer.array("given", tensor.detach())
    if not wants.gradients:
        return
    d_out = [
        quantised(*rows.shape, scale=0.25) if asked else None
        for rows, asked in zip(result.rows, wants.douts, strict=True)
    ]
    d_last = [None if drop_last and field == 0 else quantised(*rows.shape) for field, rows in enumerate(last)]
    form = sum(((leaf * 0).sum() for leaf in leaves), torch.zeros((), dtype=F64))
    for rows, weights in zip((*result.rows, *last), (*d_out, *d_last), strict=True):
        form = form if weights is None else form + (rows * weights).sum()
    found = torch.autograd.grad(form, leaves)
    for tensor in (*d_out, *d_last):
        writer.array("weights", [] if tensor is None else tensor)
        writer.array("are_given", [int(tensor is not None)])
    for gradient in found:
        writer.array("gradient", gradient)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.txt"):
        old.unlink()
    used: set[str] = set()
    for recorded in cells():
        used |= record(recorded, folder)
    missing = set(numbers()) - used - UNREACHED
    assert not missing, f"no recorded program has {sorted(missing)}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
