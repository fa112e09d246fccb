"""Records programs of the compiled machine for `make sanitize`: codes, schedules, inputs, and what must come out.

    python tests/native/record.py FOLDER

A file holds one program, or those of several kinds of rows, lowered for one kind of run, and several structures;
driver.cpp reads it. Expected values come from the reference executor in float64. Inputs are multiples of 1/1024, so
that they are the same in float32.
"""

from __future__ import annotations

import sys
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

import ritornello as rit
from ritornello.cells import Cell, total
from ritornello.executors.chains import core_levels, core_segments
from ritornello.executors.plan import Kind, Plan
from ritornello.executors.program_cell import ProgramCell
from ritornello.executors.reference import ReferenceExecutor
from ritornello.executors.request import Request, Result
from ritornello.program import (
    Builder,
    Code,
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
    """A cell's programs for rows of some kinds.

    Attributes:
        programs: all for the same state; chains run the first.
        kinds: the program of each kind of a forest's rows. Levels are of one kind after the other, in turn.
        state: the type of the state.
        real: whether the cell itself can be run for comparison.
        forward_only: it has no derivative.
    """

    name: str
    cell: nn.Module
    programs: tuple[Program, ...]
    kinds: tuple[int, ...]
    state: Any
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
            plan = Plan(simplify(unroll(traced, 1)), traced)
            slots = (1, 2, 3) if name == "lstm" and hidden == 17 else (1, 2) if hidden == 7 else (1,)
            for count in slots:
                title = f"{name}-{inputs}-{hidden}" + (f"-{count}slots" if count > 1 else "")
                program = plan.of_kind(Kind(count)).program
                yield Recorded(title, cell, (program,), (0, 0), cell.State, real=name != "dropout")
            if len(slots) > 1:
                mixed = tuple(plan.of_kind(kind).program for kind in (Kind(0), Kind(2, input=False), Kind(1)))
                title = f"{name}-{inputs}-{hidden}-mixed"
                yield Recorded(title, cell, mixed, (0, 1, 2), cell.State, real=name != "dropout")
    for size in (1, 7, 17, 33):
        for differentiable in (True, False):
            cell = Weight(size).double()
            nn.init.constant_(cell.weight, 0.75)
            program = element_ops(size, differentiable)
            program = simplify(program) if differentiable else program
            name = f"ops-{size}" + ("" if differentiable else "-all")
            yield Recorded(name, cell, (program,), (0, 0), namedtuple("State", "h"), False, not differentiable)


def reads_x(program: Program) -> bool:
    return any(node.op == "x" for node in program.nodes)


# Structures.


class CoreLevels(NamedTuple):
    """What `_core.Levels` is made of."""

    entries: int
    starts: list[int]
    source: list[int]
    last: list[int]


class CoreForest(NamedTuple):
    """What `rit::ForestStore` is made of, and the program of each kind of rows."""

    entries: int
    levels: list[int]
    source: list[int]
    last: list[int]
    owner: list[int]
    slots: list[int]
    programs: list[int]


class Structure(NamedTuple):
    """A schedule as the machine takes it: chains, the whole and its segments, or a forest."""

    schedule: Schedule
    chains: Sequence[CoreLevels] = ()
    forest: CoreForest | None = None

    def rows_with_x(self) -> list[int]:
        if self.forest is None:
            return [*range(self.schedule.rows)]
        numbers = zip(*[iter(self.forest.levels)] * 6, strict=True)
        return [row for start, rows, _, _, x, _ in numbers if x >= 0 for row in range(start, start + rows)]


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


def tangle(recorded: Recorded, entries: int, turns: int) -> Structure:
    """Rows with any earlier rows of their entry as predecessors; an entry has none, one or several in a level."""
    generator = torch.Generator().manual_seed(entries)
    programs = [recorded.programs[number] for number in recorded.kinds]
    of_kind, with_x = [0] * len(programs), 0
    known: list[list[int]] = [[0, 1 + entry] for entry in range(entries)]
    levels, made, source, owner = [], [], [], []
    for kind, program in [*enumerate(programs)] * turns:
        start, read = len(owner), []
        for entry in range(entries):
            for _ in range(int(torch.randint(0, 4, (), generator=generator)) * (entry != 2)):
                chosen = torch.randint(0, len(known[entry]), (program.slots,), generator=generator).tolist()
                read.append([known[entry][i] for i in chosen])
                owner.append(entry)
        for row in range(start, len(owner)):
            known[owner[row]].append(1 + entries + row)
        rows = len(owner) - start
        levels += [start, rows, len(source), of_kind[kind], with_x if reads_x(program) else -1, kind]
        of_kind[kind] += rows
        with_x += rows * reads_x(program)
        source += [number for numbers in read for number in numbers]
        made.append(Level(start, len(owner), torch.tensor([numbers or [0] for numbers in read])))
    last = [rows[-1] for rows in known]
    slots = [program.slots for program in programs]
    schedule = Schedule(entries, len(owner), tuple(made), last=torch.tensor(last))
    return Structure(schedule, (), CoreForest(entries, levels, source, last, owner, slots, [*recorded.kinds]))


def captured(schedule: Schedule) -> Structure:
    """The whole schedule, then the segments that a checkpointed run has."""
    with patch("ritornello._core.Levels", CoreLevels):
        return Structure(schedule, [core_levels(schedule), *(core_segments(schedule) if schedule.levels else [])])


def structures(recorded: Recorded) -> dict[str, Structure]:
    program = recorded.programs[0]
    found = {}
    if [each.slots for each in recorded.programs] == [1]:
        small = max(program.inputs, *program.fields) <= 7
        found = {name: captured(each) for name, each in chains(small).items()}
    else:
        found["tangle-many"], found["tangle-none"] = tangle(recorded, 21, 2), tangle(recorded, 3, 0)
        if program.inputs == program.fields[0] == 7:
            found["tangle-long"] = tangle(recorded, 140, 3)  # more rows of a kind than a reduction adds up at once
    found["tangle"] = tangle(recorded, 5, 2)
    return found


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


class Lowered(NamedTuple):
    """A program for one kind of run, and the values of the parameters that its code reads."""

    program: Program
    values: dict[int, Tensor]

    def given(self, others: Iterator[Tensor]) -> dict[int, Tensor]:
        """Others in place of the values; nobody asks for the gradient of one that is a constant."""
        rates = {value: self.program.nodes[value].rate for value in self.values}
        return {value: next(others) if rate >= PARAMETER else next(others).detach() for value, rate in rates.items()}


class Turns:
    """Called level by level, it is one of the cells after the other; rows are numbered through all levels."""

    def __init__(self, cells: Sequence[Any]) -> None:
        self.cells, self.row = cycle(cells), 0

    def __call__(self, x: Tensor, state: Any) -> Any:
        cell = next(self.cells)
        cell.first_row = self.row
        self.row += len(x)
        return cell(x, state)


def from_nothing(cell: Any) -> Callable[[Tensor, Any], Any]:
    """A cell that reads zeros in place of states."""
    return lambda x, s: cell(x, type(s)(*(torch.zeros_like(field) for field in s)))


def kinds_of_run(recorded: Recorded) -> dict[str, Wants]:
    fields = len(recorded.programs[0].fields)
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
    joints = [
        Joint(program, len(program.fields), 0, (), ()) if recorded.forward_only else derive(program)
        for program in recorded.programs
    ]
    cases = structures(recorded)
    used = set()
    for kind, wants in kinds_of_run(recorded).items():
        inputs = [wants.x and reads_x(program) for program in recorded.programs]
        codes = [lower(joint, wants._replace(x=x)) for joint, x in zip(joints, inputs, strict=True)]
        used |= {step.op for code in codes for steps in code.routines for step in steps if hasattr(step, "op")}
        writer = Writer(folder / f"{recorded.name}-{kind}.txt")
        writer.array("wants", [int(wants.gradients), int(wants.x), *map(int, wants.douts)])
        writer.array("programs", [len(codes)])
        lowered = [record_code(writer, recorded.cell, code) for code in codes]
        writer.array("cases", [len(cases)])
        for number, (name, structure) in enumerate(cases.items()):
            writer.file.write(f"case {name}\n")
            record_case(writer, recorded, lowered, wants, structure, drop_last=number % 3 == 2)
        writer.file.close()
    return used


def record_code(writer: Writer, cell: nn.Module, code: Code) -> Lowered:
    ints, constants = encode(code, numbers())
    read = code.program._replace(results=tuple(code.parameters))
    found = interpret(read, torch.zeros(0, 0, dtype=F64), [], lambda name: lookup(cell, name))
    values = {value: found[value].detach() for value in code.parameters}
    writer.array("ints", ints)
    writer.array("constants", [float(number) for number in constants])
    writer.array("parameters", [len(values)])
    for value in values.values():
        shape = value.shape if value.dim() == 2 else (1, value.numel())
        writer.array("shape", [*shape, int(value.dim() == 2)])
        writer.array("values", value)
    return Lowered(code.program, values)


def record_case(
    writer: Writer,
    recorded: Recorded,
    lowered: Sequence[Lowered],
    wants: Wants,
    structure: Structure,
    drop_last: bool,
) -> None:
    """One structure: its inputs, its results, and the gradients of a random linear form of these."""
    schedule, sizes, state = structure.schedule, recorded.programs[0].fields, recorded.state
    fields, with_x = len(sizes), structure.rows_with_x()
    x = torch.zeros(schedule.rows, recorded.programs[0].inputs, dtype=F64)
    x[with_x] = quantised(len(with_x), x.shape[1])
    entry = [quantised(schedule.entries, size) for size in sizes]
    blank = [quantised(1, size) for size in sizes]
    values = [value for each in lowered for value in each.values.values()]
    leaves = [leaf.clone().requires_grad_() for leaf in (x, *entry, *blank, *values)]
    others = iter(leaves[1 + 2 * fields :])
    asked = [ProgramCell(each.program, state, each.given(others), SEED) for each in lowered]
    result = unfolded(recorded, asked, leaves, schedule)
    last = result.last if schedule.entry is None else [field[schedule.entry] for field in result.last]
    if recorded.real:
        real = [recorded.cell if program.slots else from_nothing(recorded.cell) for program in recorded.programs]
        rows = unfolded(recorded, real, [x, *entry, *blank], schedule).rows
        torch.testing.assert_close([*rows], [*result.rows], rtol=1e-10, atol=1e-10)
    writer.array("seed", [SEED])
    record_structure(writer, structure)
    for tensor in (x[with_x], *entry, *blank, *result.rows, *last):
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
    d_x, *found = torch.autograd.grad(form, leaves)
    for tensor in (*d_out, *d_last):
        writer.array("weights", [] if tensor is None else tensor)
        writer.array("are_given", [int(tensor is not None)])
    for gradient in (d_x[with_x], *found):
        writer.array("gradient", gradient)


def unfolded(recorded: Recorded, cells: Sequence[Any], leaves: Sequence[Tensor], schedule: Schedule) -> Result:
    """What comes of cells, one for each program: from x, the entries' states and the blank one."""
    cell: Any = Turns([cells[number] for number in recorded.kinds])
    fields = len(recorded.state._fields)
    entry, blank = recorded.state(*leaves[1 : 1 + fields]), recorded.state(*leaves[1 + fields : 1 + 2 * fields])
    return ReferenceExecutor().run(Request(cell, leaves[0], entry, blank, schedule, True))


def record_structure(writer: Writer, structure: Structure) -> None:
    writer.array("chains", [len(structure.chains)])
    for each in (*structure.chains, *([structure.forest] if structure.forest else [])):
        for name, value in each._asdict().items():
            writer.array(name, value if isinstance(value, list) else [value])


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
