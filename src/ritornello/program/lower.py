"""From a joint program to the code of the C++ machine.

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

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from ritornello.program.derive import Joint
from ritornello.program.ops import ELEMENTS, OPS, Term
from ritornello.program.program import GRADIENT, INPUT, PARAMETER, STATE, Node, Program, Value, live, products
from ritornello.program.save import choose_saved

BEFORE, LOOP, BACK, AFTER = range(4)
ROUTINES = ("before", "loop", "back", "after")
CONST, TEMP, SCRATCH, FRAME, X, DX = range(6)
PARTS = ("slice", "damped")  # ops whose result lies within their first argument
ALIGN = 16  # elements: a cache line of single precision
MOST_FIELDS, MOST_SLOTS, MOST_TERMS = 16, 16, 64  # as in src/csrc/code.h; terms of one product


class Place(NamedTuple):
    """Where a row's value lies: `size` elements from `offset` in a space; `scalar` ones stand for any number."""

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
    """A window of a parameter's gradient: Σ over rows of leftᵀ right; a vector's: of left, or of left times right."""

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


class Wants(NamedTuple):
    """What is asked of a run.

    Attributes:
        gradients: whether there is a backward pass at all.
        x: whether x's gradient is wanted.
        douts: which fields' rows have gradients from outside.
    """

    gradients: bool
    x: bool
    douts: tuple[bool, ...]


@dataclass(eq=False)
class _Slot:
    """A value that instructions write and read, before it has a place."""

    size: int
    routine: int
    place: Place | None = None
    written: tuple[int, int] | None = None  # routine, step: when
    reads: list[tuple[tuple[int, int], int, int]] = field(default_factory=list)  # when, first and last + 1 element
    kept: bool = False  # for the reductions
    hint: tuple[_Slot, int] | None = None
    block: bool = False  # products read and write whole blocks

    def at(self, offset: int, size: int) -> _View:
        return _View(self, offset, size)


class _View(NamedTuple):
    slot: _Slot
    offset: int
    size: int


class _Item(NamedTuple):
    """An instruction or product over views."""

    op: str
    size: int
    out: _View
    args: tuple[_View, ...]
    extra: int
    start: bool  # of a product: the first argument is where it starts


def lower(joint: Joint, wants: Wants) -> Code:
    """Code for a program and, if gradients are wanted, its adjoint."""
    return _Lowering(joint, wants).code()


class _Lowering:
    def __init__(self, joint: Joint, wants: Wants) -> None:
        self.joint, self.wants, self.program = joint, wants, joint.program
        self.nodes = joint.program.nodes
        self.spaces = Spaces(len(self.program.fields), self.program.slots)
        self.items: tuple[list[_Item], ...] = ([], [], [], [])
        self.slots: list[_Slot] = []
        self.made: dict[tuple[Value, int], _View] = {}
        self.packs: dict[Pack, int] = {}
        self.parameters: dict[Value, int] = {}
        self.constants: dict[tuple[str, int], _View] = {}  # by text: 0 is not -0
        self.vectors: dict[Value, _View] = {}
        self.const_size = 0
        self.fixed: dict[int, _Slot] = {}
        self.targets: dict[tuple[Value, int], int] = {}
        results = self.program.results
        self.forward = results[: joint.forward]
        self.d_states = results[joint.forward : joint.forward + joint.states] if wants.gradients else ()
        self.d_x = results[joint.x_gradient] if wants.gradients and wants.x else None
        self.sides = self._reduction_sides()
        self.stages = self._stages()
        self.saved = self._saved()

    # What is computed where.
    def _reduction_sides(self) -> list[Value]:
        if not self.wants.gradients:
            return []
        results = self.program.results
        sides = [results[p] for w in self.joint.weights for p in (w.left, w.right)]
        return sides + [results[v.value] for v in self.joint.vectors]

    def _stages(self) -> dict[Value, int | None]:
        """The routine of each value; None for leaves, parameters, constants, and what is drawn at random."""
        loop = set(live(self.nodes, self.d_states))
        stages: dict[Value, int | None] = {}
        for value, node in enumerate(self.nodes):
            if node.rate <= PARAMETER or node.op in ("x", "state", "uniform"):
                stages[value] = None
            elif node.rate == INPUT:
                varying = [arg for arg in node.args if self.nodes[arg].rate == INPUT]
                drawn = all(stages[arg] is None and self.nodes[arg].op != "x" for arg in varying)
                stages[value] = None if drawn else BEFORE
            elif node.rate == STATE:
                stages[value] = LOOP
            else:
                late = node.op == "affine" or any(stages[arg] == AFTER for arg in node.args)
                stages[value] = AFTER if late and value not in loop else BACK
        return stages

    def _saved(self) -> set[Value]:
        """The forward values that are kept for the adjoint."""
        if not self.wants.gradients:
            return set()
        wanted = [*self.d_states, *([self.d_x] if self.d_x is not None else []), *self.sides]
        readers = [v for v in live(self.nodes, wanted) if self.nodes[v].rate == GRADIENT]
        needed = {arg for v in readers for arg in self.nodes[v].args if self._computed_forward(arg)}
        free = {v for v in range(len(self.nodes)) if self.stages[v] is None} | set(self.forward)
        kept = {root for side in self.sides for root in self._roots(side) if self._computed_forward(root)} - free
        return choose_saved(self.nodes, needed, free | kept) | kept

    def _computed_forward(self, value: Value) -> bool:
        return self.stages[value] in (BEFORE, LOOP)

    def _roots(self, value: Value) -> list[Value]:
        """The values that lie in memory where this one is a view of them."""
        roots, waiting = [], [value]
        while waiting:
            each = waiting.pop()
            if self.nodes[each].op in PARTS:
                waiting.append(self.nodes[each].args[0])
            elif self.nodes[each].op == "cat":
                waiting += self.nodes[each].args[::-1]
            else:
                roots.append(each)
        return roots

    # Places of values.
    def _slot(self, size: int, routine: int) -> _Slot:
        slot = _Slot(size, routine)
        self.slots.append(slot)
        return slot

    def _fixed(self, space: int, size: int) -> _View:
        if space not in self.fixed:
            self.fixed[space] = _Slot(size, -1, Place(space, 0, size))
        return self.fixed[space].at(0, size)

    def _constant(self, number: float, size: int) -> _View:
        key = (repr(number), size)
        if key not in self.constants:
            self.constants[key] = self._const(size)
        return self.constants[key]

    def _const(self, size: int) -> _View:
        place = Place(CONST, self.const_size, size)
        self.const_size += -(-size // ALIGN) * ALIGN
        return _Slot(size, -1, place).at(0, size)

    def _parameter(self, value: Value) -> int:
        return self.parameters.setdefault(value, len(self.parameters))

    def view(self, value: Value, routine: int) -> _View:
        """Where a routine finds a value; computes it if need be, and before it what it is computed from."""
        waiting = [(value, routine)]
        while waiting:
            unmade = [each for each in self._reads(*waiting[-1]) or () if self._reads(*each) is not None]
            if unmade:
                waiting += reversed(unmade)
            else:
                found = self._view(*waiting.pop())
        return found

    def _reads(self, value: Value, routine: int) -> list[tuple[Value, int]] | None:
        """What computing a value reads, each with the routine that needs it; None where there is nothing to compute."""
        node = self.nodes[value]
        if (value, routine) in self.made or node.rate <= PARAMETER or node.op in ("x", "state"):
            return None
        if routine >= BACK and value in self.forward:
            return None
        if self._is_part(value, routine):
            return self._reads(node.args[0], routine)
        home = self._home(value, routine)
        return None if (value, home) in self.made else [(self._read(arg, node), home) for arg in node.args]

    def _view(self, value: Value, routine: int) -> _View:
        node = self.nodes[value]
        if (value, routine) in self.made:
            return self.made[value, routine]
        if node.op == "constant":
            return self._constant(node.attributes[0], 1)
        if node.rate <= PARAMETER:
            return self._vector(value)
        if node.op == "x":
            return self._fixed(X, node.size)
        if node.op == "state":
            return self._fixed(self.spaces.prev(*node.attributes), node.size)
        if routine >= BACK and value in self.forward:
            return self._fixed(self.spaces.out(self.forward.index(value)), node.size)
        if self._is_part(value, routine):
            return self._part(node, routine)
        if node.op == "gradient" and routine == AFTER:
            return self._remembered(value)
        return self._computed(value, routine)

    def _is_part(self, value: Value, routine: int) -> bool:
        """Whether it lies within its first argument, and is not saved apart."""
        return self.nodes[value].op in PARTS and not (value in self.saved and routine >= BACK)

    def _remembered(self, value: Value) -> _View:
        """A row's gradient as AFTER finds it: what rows that follow handed on lies elsewhere by then."""
        view = self._computed(value, BACK)
        self.made[value, AFTER] = view = view if view.slot.place is None else self._kept_copy(view)
        return view

    def _kept_copy(self, view: _View) -> _View:
        """A copy of what lies only passing where it is, made in BACK."""
        copy = self._slot(view.size, BACK).at(0, view.size)
        self._copy(BACK, copy, view)
        return copy

    def _part(self, node: Node, routine: int) -> _View:
        view = self.view(node.args[0], routine)
        return _View(view.slot, view.offset + (node.attributes[0] if node.op == "slice" else 0), node.size)

    def _home(self, value: Value, routine: int) -> int:
        """The routine that computes a value which another one reads: it itself, if that is drawn or computed again."""
        stage = self.stages[value]
        return routine if stage is None or (stage < BACK <= routine and value not in self.saved) else stage

    def _computed(self, value: Value, routine: int) -> _View:
        home = self._home(value, routine)
        view = self.made.get((value, home)) or self._emit(value, home)
        self.made[value, home] = self.made[value, routine] = view
        return view

    def _vector(self, value: Value) -> _View:
        node = self.nodes[value]
        if node.op == "expand" and self.nodes[node.args[0]].op == "constant":
            return self._constant(self.nodes[node.args[0]].attributes[0], node.size)
        if value not in self.vectors:
            self.vectors[value] = self._const(node.size)
            self._parameter(value)
        return self.vectors[value]

    # Instructions.
    def _append(
        self, routine: int, op: str, out: _View, args: Sequence[_View], extra: int = 0, start: bool = False
    ) -> None:
        self.items[routine].append(_Item(op, out.size, out, tuple(args), extra, start))

    def _emit(self, value: Value, routine: int) -> _View:
        node = self.nodes[value]
        if node.op == "gradient":
            return self._own_gradient(node, routine)
        if node.op == "affine":
            return self._product(value, node, routine)
        if node.op == "cat":
            parts = [self.view(arg, routine) for arg in node.args]
            out = self._out(value, routine)
            at = 0
            for arg, part in zip(node.args, parts, strict=True):
                self._copy(routine, _View(out.slot, out.offset + at, self.nodes[arg].size), part)
                at += self.nodes[arg].size
            return out
        if node.op in PARTS:  # saved apart from the rest
            source = self._part(node, routine)
            out = self._out(value, routine)
            self._copy(routine, out, source)
            return out
        if node.op == "uniform":
            out = self._out(value, routine)
            self._append(routine, "uniform", out, (), node.attributes[0])
            return out
        if node.op == "expand":
            source = self.view(node.args[0], routine)
            out = self._out(value, routine)
            self._copy(routine, out, source)
            return out
        args = [self.view(self._read(arg, node), routine) for arg in node.args]
        op, args = self._variant(node, args, routine)
        extra = self.nodes[node.args[1]].size if node.op.startswith("outer") else args[0].size
        hint = args[0]
        out = self._out(value, routine)
        if OPS[node.op].kind == ELEMENTS and hint.size == out.size:
            out.slot.hint = (hint.slot, hint.offset)
        self._append(routine, op, out, args, extra)
        return out

    def _own_gradient(self, node: Node, routine: int) -> _View:
        number = node.attributes[0]
        carry = self._fixed(self.spaces.carry(number), node.size)
        if not self.wants.douts[number]:
            return carry
        out = self._slot(node.size, routine).at(0, node.size)
        self._append(routine, "add", out, (carry, self._fixed(self.spaces.dout(number), node.size)))
        return out

    def _read(self, arg: Value, node: Node) -> Value:
        """What is read as an argument: of what is expanded, the one number that it is."""
        inner = self.nodes[arg]
        alone = node.op in OPS and OPS[node.op].kind == ELEMENTS and inner.op == "expand" and len(node.args) == 2
        return inner.args[0] if alone else arg

    def _variant(self, node: Node, args: list[_View], routine: int) -> tuple[str, list[_View]]:
        """The instruction for these sizes: two-argument ops take one number in place of either argument."""
        if OPS[node.op].kind != ELEMENTS or node.size == 1:
            return node.op, args
        if len(args) == 2:
            kinds = ["s" if arg.size == 1 else "v" for arg in args]
            if kinds != ["s", "s"]:
                return node.op + {"vv": "", "vs": ".vs", "sv": ".sv"}["".join(kinds)], args
        return node.op, [self._spread(arg, node.size, routine) for arg in args]

    def _spread(self, view: _View, size: int, routine: int) -> _View:
        if view.size == size:
            return view
        for (number, _), known in list(self.constants.items()):
            if known == view:
                return self._constant(float(number), size)
        out = self._slot(size, routine).at(0, size)
        self._copy(routine, out, view)
        return out

    def _copy(self, routine: int, out: _View, source: _View) -> None:
        self._append(routine, "copy" if source.size == out.size else "expand", out, (source,))

    def _product(self, value: Value, node: Node, routine: int) -> _View:
        start = self.view(node.args[0], routine) if len(node.args) % 2 else None
        if start is not None:
            start = self._spread(start, node.size, routine)
        terms = list(products(node))
        while len(terms) > MOST_TERMS:
            start = self._multiplied(
                terms[:MOST_TERMS], start, self._slot(node.size, routine).at(0, node.size), routine
            )
            terms = terms[MOST_TERMS:]
        return self._multiplied(terms, start, self._out(value, routine), routine)

    def _multiplied(
        self, terms: Sequence[tuple[Value, Value, Term]], start: _View | None, out: _View, routine: int
    ) -> _View:
        left, parts = [], []
        for v, weight, term in terms:
            view = self._spread(self.view(v, routine), self.nodes[v].size, routine)
            left.append(view)
            parts.append((self._parameter(weight), term, view.size))
        pack = Pack(out.size, tuple(parts))
        number = self.packs.setdefault(pack, len(self.packs))
        out.slot.block = True
        for view in left:
            view.slot.block = True
        if start is not None:
            start.slot.block = True
            out.slot.hint = (start.slot, start.offset)
        args = ([start] if start is not None else []) + left
        self._append(routine, "product", out, args, number, start is not None)
        return out

    def _out(self, value: Value, routine: int) -> _View:
        size = self.nodes[value].size
        space = self.targets.pop((value, routine), None)
        if space is not None:
            slot = _Slot(size, routine, Place(space, 0, size))
            return slot.at(0, size)
        return self._slot(size, routine).at(0, size)

    # Putting it together.
    def code(self) -> Code:
        out = [self.spaces.out(f) for f in range(self.spaces.fields)]
        self._results(self.forward, out, LOOP)
        if self.wants.gradients:
            dprev = [self.spaces.dprev(f, s) for s in range(self.spaces.slots) for f in range(self.spaces.fields)]
            self._results(self.d_states, dprev, BACK)
            if self.d_x is not None:
                self._results([self.d_x], [DX], AFTER)
        reductions = self._reductions()
        for items in self.items:
            _sink(items)
        self._read_and_written()
        sizes = self._allocate()
        return Code(
            self.program,
            self.spaces,
            tuple([self._final(item) for item in routine] for routine in self.items),
            list(self.packs),
            [(v.slot.place.offset, v.size, float(number)) for (number, _), v in self.constants.items() if v.slot.place],
            [(v.slot.place.offset, v.size, self.parameters[p]) for p, v in self.vectors.items() if v.slot.place],
            list(self.parameters),
            _joined(reductions),
            self.const_size,
            *sizes,
            self.program.fields,
            self.program.inputs,
        )

    def _results(self, values: Sequence[Value], spaces: Sequence[int], routine: int) -> None:
        """Computes values into spaces: in place where that is where they are made, copied where they lie elsewhere."""
        copied = []
        for value, space in zip(values, spaces, strict=True):
            made_here = self.stages[value] == routine and self.nodes[value].op not in (*PARTS, "gradient")
            if made_here and (value, routine) not in self.targets:
                self.targets[value, routine] = space
            else:
                copied.append((value, space))
        depth = self._depths(routine)
        for value in sorted(values, key=lambda v: depth.get(v, 0)):
            self.view(value, routine)
        for value, space in copied:
            self._copy(routine, self._fixed(space, self.nodes[value].size), self.view(value, routine))

    def _depths(self, routine: int) -> dict[Value, int]:
        """How many products of the routine lie one above the other under each value."""
        depth: dict[Value, int] = {}
        for value, node in enumerate(self.nodes):
            if self.stages[value] == routine:
                depth[value] = max((depth.get(arg, 0) for arg in node.args), default=0) + (node.op == "affine")
        return depth

    def _reductions(self) -> list[tuple[Reduction, _View, _View | None]]:
        if not self.wants.gradients:
            return []
        results, nowhere = self.program.results, Place(CONST, 0, 0)
        found: list[tuple[Reduction, _View, _View | None]] = []
        for w in self.joint.weights:
            parameter, row = self._parameter(results[w.parameter]), w.row
            for left in self._pieces(results[w.left]):
                column = w.column
                for right in self._pieces(results[w.right]):
                    found.append((Reduction(parameter, row, column, nowhere, None, True), left, right))
                    column += right.size
                row += left.size
        for v in self.joint.vectors:
            parameter, row = self._parameter(results[v.parameter]), 0
            for left in self._pieces(results[v.value]):
                found.append((Reduction(parameter, row, 0, nowhere, None, False), left, None))
                row += left.size
        return found

    def _pieces(self, value: Value) -> list[_View]:
        """The places that hold a value when all is done, side by side."""
        node = self.nodes[value]
        if node.op == "cat":
            return [piece for arg in node.args for piece in self._pieces(arg)]
        view = self.view(value, AFTER if self.stages[value] == AFTER else BACK)
        if view.slot.place is not None and view.slot.place.space in self._passing():
            view = self._kept_copy(view)
        view.slot.kept = True
        return [view]

    def _passing(self) -> set[int]:
        """Spaces that the reductions cannot read: they hold something else by then, or have no rows."""
        s = self.spaces
        carried = {s.carry(f) for f in range(s.fields)}
        return carried | {s.dprev(f, k) for f in range(s.fields) for k in range(s.slots)} | {CONST}

    def _read_and_written(self) -> None:
        for routine, items in enumerate(self.items):
            for step, item in enumerate(items):
                if item.out.slot.written is None:
                    item.out.slot.written = (routine, step)
                for arg in item.args:
                    arg.slot.reads.append(((routine, step), arg.offset, arg.offset + arg.size))

    def _allocate(self) -> tuple[int, int, int]:
        """Gives every slot its place; returns the sizes of TEMP, SCRATCH and FRAME."""
        arenas = {TEMP: _Arena(), SCRATCH: _Arena(), FRAME: _Arena()}
        space_of = {id(slot): self._space(slot) for slot in self.slots}
        dying: dict[tuple[int, int], list[tuple[_Slot, int, int]]] = defaultdict(list)
        for slot in self.slots:
            for start, stop, when in _ends(slot):
                dying[when].append((slot, start, stop))
        for routine, items in enumerate(self.items):
            for step, item in enumerate(items):
                slot = item.out.slot
                if slot.place is None:
                    space = space_of[id(slot)]
                    offset = self._in_place(item, dying[routine, step], space)
                    if offset is None:
                        offset = arenas[space].take(slot.size, self._hinted(slot))
                    slot.place = Place(space, offset, slot.size)
                for other, start, stop in dying.pop((routine, step), []):
                    if other.place is not None and space_of.get(id(other)) == other.place.space:
                        arenas[other.place.space].give(other.place.offset + start, stop - start)
        return arenas[TEMP].size, arenas[SCRATCH].size, arenas[FRAME].size

    def _space(self, slot: _Slot) -> int:
        assert slot.written is not None
        routine = slot.written[0]
        if slot.kept or any(when[0] != routine for when, _, _ in slot.reads):
            return FRAME
        last = max((when[1] for when, _, _ in slot.reads), default=slot.written[1])
        crossed = any(item.op == "product" for item in self.items[routine][slot.written[1] : last + 1])
        return SCRATCH if slot.block or crossed else TEMP

    def _in_place(self, item: _Item, dying: list[tuple[_Slot, int, int]], space: int) -> int | None:
        """The place of an argument that is read here for the last time, if the result can take it over."""
        base = item.op.partition(".")[0]
        whole = item.out.size == item.out.slot.size and item.out.offset == 0
        if not whole or (item.op != "product" and (base not in OPS or OPS[base].kind != ELEMENTS)):
            return None
        for number, arg in enumerate(item.args):
            if item.op == "product" and not (item.start and number == 0 and arg not in item.args[1:]):
                break  # its rows are read while its columns are written
            entry = (arg.slot, arg.offset, arg.offset + arg.size)
            place = arg.slot.place
            if place is None or place.space != space or arg.size != item.out.size or entry not in dying:
                continue
            dying.remove(entry)
            return place.offset + arg.offset
        return None

    def _hinted(self, slot: _Slot) -> int | None:
        """Where the value that this one is computed from lay, or where the product that made it started."""
        hint, offset = slot.hint, 0
        while hint is not None:
            offset += hint[1]
            if hint[0].place is not None and hint[0].place.space == FRAME:
                return hint[0].place.offset + offset
            hint = hint[0].hint
        return None

    def _final(self, item: _Item) -> Instruction | Product:
        out, args = _place(item.out), tuple(_place(arg) for arg in item.args)
        if item.op == "product":
            return Product(item.size, out, args[0] if item.start else None, item.extra, args[item.start :])
        return Instruction(item.op, item.size, out, args, item.extra)


def _sink(items: list[_Item]) -> None:
    """Moves an instruction whose result is kept behind the last reader of an argument whose place it could take."""
    for item in list(items):
        view = _kept_argument(item)
        if view is None:
            continue
        at = items.index(item)
        readers = [k for k in range(at + 1, len(items)) if _reads(items[k], view)]
        if readers and not any(_in_the_way(other, item) for other in items[at + 1 : readers[-1] + 1]):
            items.insert(readers[-1], items.pop(at))


def _kept_argument(item: _Item) -> _View | None:
    """An argument of the result's size that another routine left in the frame."""
    if item.op == "product" or not item.out.slot.kept:
        return None
    here, size = item.out.slot.routine, item.out.size
    kept = (arg for arg in item.args if arg.slot.place is None and arg.slot.routine != here and arg.size == size)
    return next(kept, None)


def _in_the_way(other: _Item, item: _Item) -> bool:
    """Whether the item cannot be moved behind the other."""
    writes = any(other.out.slot is arg.slot for arg in item.args)
    return other.op == "product" or _reads(other, item.out) or other.out.slot is item.out.slot or writes


def _reads(item: _Item, view: _View) -> bool:
    end = view.offset + view.size
    return any(arg.slot is view.slot and arg.offset < end and view.offset < arg.offset + arg.size for arg in item.args)


def _ends(slot: _Slot) -> Iterable[tuple[int, int, tuple[int, int]]]:
    """The parts of a slot, each with the moment after which nobody reads it."""
    if slot.kept or slot.written is None:
        return
    bounds = sorted({0, slot.size, *(edge for _, start, stop in slot.reads for edge in (start, stop))})
    for start, stop in pairwise(bounds):
        when = max((w for w, a, b in slot.reads if a <= start and stop <= b), default=slot.written)
        yield start, stop, when


def _place(view: _View) -> Place:
    place = view.slot.place
    assert place is not None
    return Place(place.space, place.offset + view.offset, view.size)


def _joined(found: list[tuple[Reduction, _View, _View | None]]) -> list[Reduction]:
    """Placed; neighbours in memory and in the parameter become one."""
    joined: list[Reduction] = []
    for reduction, left, right in found:
        each = reduction._replace(left=_place(left), right=None if right is None else _place(right))
        if joined and _continues(joined[-1], each):
            left_of_both = joined[-1].left._replace(size=joined[-1].left.size + each.left.size)
            joined[-1] = joined[-1]._replace(left=left_of_both)
        else:
            joined.append(each)
    return joined


def _continues(one: Reduction, other: Reduction) -> bool:
    same = (one.parameter, one.column, one.right, one.matrix, one.left.space) == (
        *(other.parameter, other.column, other.right, other.matrix, other.left.space),
    )
    return same and one.row + one.left.size == other.row and one.left.offset + one.left.size == other.left.offset


class _Arena:
    """Places in one space: the first that fits, the one hinted at if it is free."""

    def __init__(self) -> None:
        self.size = 0
        self.free: list[tuple[int, int]] = []  # start, stop

    def take(self, size: int, hint: int | None = None) -> int:
        if hint is not None:
            for start, stop in self.free:
                if start <= hint and hint + size <= stop:
                    return self._use(start, stop, hint, size)
        for start, stop in self.free:
            if stop - start >= size:
                return self._use(start, stop, start, size)
        offset = self.size
        self.size += -(-size // ALIGN) * ALIGN
        if self.size > offset + size:
            self.free.append((offset + size, self.size))
        return offset

    def _use(self, start: int, stop: int, offset: int, size: int) -> int:
        self.free.remove((start, stop))
        self.free += [piece for piece in ((start, offset), (offset + size, stop)) if piece[0] < piece[1]]
        self.free.sort()
        return offset

    def give(self, offset: int, size: int) -> None:
        pieces = sorted([*self.free, (offset, offset + size)])
        merged = [pieces[0]]
        for start, stop in pieces[1:]:
            if start == merged[-1][1]:
                merged[-1] = (merged[-1][0], stop)
            else:
                merged.append((start, stop))
        self.free = merged


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
