"""The code of the C++ machine, and the integers in which it is handed over.

Four routines, each run over blocks of rows: BEFORE (what needs no state: hoisted out of the loop), LOOP (a level, from
its predecessors' states to its own), BACK (the adjoint of LOOP, levels backwards) and AFTER (gradients that no other
row waits for: of x). At the end come the reductions, parameters' gradients summed over all rows.

A routine is a list of steps: products over all rows of the block, and between them runs of element-wise instructions,
row by row. An operand is a place: a space and an offset in elements.

    CONST    parameters' vectors and constants          TEMP     one row's intermediate values, in the first cache
    SCRATCH  a block's intermediate values              FRAME    what is kept of a row, from routine to routine
    X, DX    the input and its gradient                 PREV, OUT    states of predecessors, of the rows themselves
    DOUT     gradients of the rows' states from outside     CARRY, DPREV    from the rows that follow, to predecessors
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ritornello.program.ops import Term
from ritornello.program.program import Program, Value

BEFORE, LOOP, BACK, AFTER = range(4)
ROUTINES = ("before", "loop", "back", "after")
CONST, TEMP, SCRATCH, FRAME, X, DX = range(6)
MOST_FIELDS, MOST_SLOTS, MOST_TERMS, MOST_SPACES = 16, 16, 64, 128  # as in src/csrc/code.h; terms of one product


def most_predecessors(fields: int) -> int:
    """How many a row may have whose states have so many fields: each field of each has two spaces."""
    return min(MOST_SLOTS, ((MOST_SPACES - DX - 1) // fields - 3) // 2)


class Place(NamedTuple):
    """Where a row's value lies: `size` elements from `offset` in a space."""

    space: int
    offset: int
    size: int


class Instruction(NamedTuple):
    """One element-wise instruction over a row. `extra` is an op's own number: inner size, or random stream."""

    op: str
    size: int
    out: Place
    args: tuple[Place, ...]
    extra: int = 0


class Product(NamedTuple):
    """out = start + left · packed weights, over all rows of the block."""

    size: int
    out: Place
    start: Place | None
    pack: int
    left: tuple[Place, ...]


class Pack(NamedTuple):
    """Weights in panels: windows of parameters, one below the other."""

    size: int
    parts: tuple[tuple[int, Term, int], ...]  # parameter, window, rows of the packed matrix


class Reduction(NamedTuple):
    """A window of a parameter's gradient: Σ over rows of leftᵀ right; a vector's: of left."""

    parameter: int
    row: int
    column: int
    left: Place
    right: Place | None
    matrix: bool


class Spaces(NamedTuple):
    """The numbers of the spaces that there is one of for each field of the state (and predecessor)."""

    fields: int
    slots: int

    def prev(self, field: int, slot: int) -> int:
        return 6 + slot * self.fields + field

    def out(self, field: int) -> int:
        return 6 + self.slots * self.fields + field

    def dout(self, field: int) -> int:
        return self.out(field) + self.fields

    def carry(self, field: int) -> int:
        return self.out(field) + 2 * self.fields

    def dprev(self, field: int, slot: int) -> int:
        return self.out(0) + 3 * self.fields + slot * self.fields + field

    @property
    def total(self) -> int:
        return self.dprev(0, self.slots)


@dataclass
class Code:
    """What the machine runs. `parameters` are the parameter-rate values that it reads, in the order it gets them."""

    program: Program
    spaces: Spaces
    routines: tuple[list[Instruction | Product], ...]
    packs: list[Pack]
    constants: list[tuple[int, int, float]]  # offset in CONST, elements, number
    vectors: list[tuple[int, int, int]]  # offset in CONST, elements, parameter
    parameters: list[Value]
    reductions: list[Reduction]
    const: int
    temp: int
    scratch: int
    frame: int
    state_sizes: tuple[int, ...]
    input_size: int


def encode(code: Code, number_of: dict[str, int]) -> tuple[list[int], list[float]]:
    """The code as integers and constants, in the order in which src/csrc/code.h reads them.

    Args:
        number_of: the machine's number for each op.
    """
    ints: list[int] = [len(code.state_sizes), code.spaces.slots, *code.state_sizes, code.input_size]
    ints += [code.const, code.temp, code.scratch, code.frame, len(code.packs), len(code.parameters)]
    for steps in code.routines:
        runs = _runs(steps)
        ints.append(len(runs))
        for run in runs:
            if isinstance(run, Product):
                start = run.start if run.start is not None else Place(-1, 0, 0)
                ints += [1, run.size, *run.out[:2], *start[:2], run.pack, len(run.left)]
                ints += [number for place in run.left for number in place]
            else:
                ints += [0, len(run)]
                for op, size, out, args, extra in run:
                    places = [*args, *[Place(CONST, 0, 0)] * (3 - len(args))]
                    ints += [
                        number_of[op],
                        size,
                        extra,
                        *out[:2],
                        *(number for place in places for number in place[:2]),
                    ]
    for pack in code.packs:
        ints += [pack.size, len(pack.parts)]
        ints += [number for parameter, term, depth in pack.parts for number in (parameter, *map(int, term), depth)]
    ints.append(len(code.constants))
    ints += [number for offset, size, _ in code.constants for number in (offset, size)]
    ints.append(len(code.vectors))
    ints += [number for vector in code.vectors for number in vector]
    ints.append(len(code.reductions))
    for r in code.reductions:
        right = r.right if r.right is not None else Place(-1, 0, 0)
        ints += [r.parameter, r.row, r.column, int(r.matrix), *r.left, *right]
    return ints, [number for _, _, number in code.constants]


def _runs(steps: Sequence[Instruction | Product]) -> list[Product | list[Instruction]]:
    """Products, and runs of instructions between them."""
    runs: list[Product | list[Instruction]] = []
    for step in steps:
        if isinstance(step, Product):
            runs.append(step)
        elif runs and isinstance(runs[-1], list):
            runs[-1].append(step)
        else:
            runs.append([step])
    return runs
