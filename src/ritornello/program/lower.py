"""From a joint program to the code of the machine: what is computed where, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ritornello.program.code import (
    AFTER,
    BACK,
    BEFORE,
    CONST,
    DX,
    LOOP,
    MOST_TERMS,
    Code,
    Pack,
    Place,
    Reduction,
    Spaces,
    X,
)
from ritornello.program.derive import Joint
from ritornello.program.ops import ELEMENTS, OPS, Term
from ritornello.program.places import ALIGN, Item, Slot, View, allocate, final, place_of, sink
from ritornello.program.program import GRADIENT, INPUT, PARAMETER, STATE, Node, Value, live, products
from ritornello.program.save import choose_saved

PARTS = ("slice", "damped")  # ops whose result lies within their first argument
MAKERS = {LOOP: (BEFORE, LOOP), BACK: (BACK,), AFTER: (AFTER,)}  # who may write into a routine's results


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


def lower(joint: Joint, wants: Wants) -> Code:
    """Code for a program and, if gradients are wanted, its adjoint."""
    return _Lowering(joint, wants).code()


class _Lowering:
    def __init__(self, joint: Joint, wants: Wants) -> None:
        self.joint, self.wants, self.program = joint, wants, joint.program
        self.nodes = joint.program.nodes
        self.spaces = Spaces(len(self.program.fields), self.program.slots)
        self.items: tuple[list[Item], ...] = ([], [], [], [])
        self.slots: list[Slot] = []
        self.made: dict[tuple[Value, int], View] = {}
        self.packs: dict[Pack, int] = {}
        self.parameters: dict[Value, int] = {}
        self.constants: dict[tuple[str, int], View] = {}  # by text: 0 is not -0
        self.vectors: dict[Value, View] = {}
        self.const_size = 0
        self.fixed: dict[int, Slot] = {}
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
    def _slot(self, size: int, routine: int) -> Slot:
        slot = Slot(size, routine)
        self.slots.append(slot)
        return slot

    def _fixed(self, space: int, size: int) -> View:
        if space not in self.fixed:
            self.fixed[space] = Slot(size, -1, Place(space, 0, size))
        return self.fixed[space].at(0, size)

    def _constant(self, number: float, size: int) -> View:
        key = (repr(number), size)
        if key not in self.constants:
            self.constants[key] = self._const(size)
        return self.constants[key]

    def _const(self, size: int) -> View:
        place = Place(CONST, self.const_size, size)
        self.const_size += -(-size // ALIGN) * ALIGN
        return Slot(size, -1, place).at(0, size)

    def _parameter(self, value: Value) -> int:
        return self.parameters.setdefault(value, len(self.parameters))

    def view(self, value: Value, routine: int) -> View:
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

    def _view(self, value: Value, routine: int) -> View:
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

    def _remembered(self, value: Value) -> View:
        """A row's gradient as AFTER finds it: what rows that follow handed on lies elsewhere by then."""
        view = self._computed(value, BACK)
        self.made[value, AFTER] = view = view if view.slot.place is None else self._kept_copy(view)
        return view

    def _kept_copy(self, view: View) -> View:
        """A copy of what lies only passing where it is, made in BACK."""
        copy = self._slot(view.size, BACK).at(0, view.size)
        self._copy(BACK, copy, view)
        return copy

    def _part(self, node: Node, routine: int) -> View:
        view = self.view(node.args[0], routine)
        return View(view.slot, view.offset + (node.attributes[0] if node.op == "slice" else 0), node.size)

    def _home(self, value: Value, routine: int) -> int:
        """The routine that computes a value which another one reads: it itself, if that is drawn or computed again."""
        stage = self.stages[value]
        return routine if stage is None or (stage < BACK <= routine and value not in self.saved) else stage

    def _computed(self, value: Value, routine: int) -> View:
        home = self._home(value, routine)
        view = self.made.get((value, home)) or self._emit(value, home)
        self.made[value, home] = self.made[value, routine] = view
        return view

    def _vector(self, value: Value) -> View:
        node = self.nodes[value]
        if node.op == "expand" and self.nodes[node.args[0]].op == "constant":
            return self._constant(self.nodes[node.args[0]].attributes[0], node.size)
        if value not in self.vectors:
            self.vectors[value] = self._const(node.size)
            self._parameter(value)
        return self.vectors[value]

    # Instructions.
    def _append(
        self, routine: int, op: str, out: View, args: Sequence[View], extra: int = 0, start: bool = False
    ) -> None:
        self.items[routine].append(Item(op, out.size, out, tuple(args), extra, start))

    def _emit(self, value: Value, routine: int) -> View:
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
                self._copy(routine, View(out.slot, out.offset + at, self.nodes[arg].size), part)
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

    def _own_gradient(self, node: Node, routine: int) -> View:
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

    def _variant(self, node: Node, args: list[View], routine: int) -> tuple[str, list[View]]:
        """The instruction for these sizes: two-argument ops take one number in place of either argument."""
        if OPS[node.op].kind != ELEMENTS or node.size == 1:
            return node.op, args
        if len(args) == 2:
            kinds = ["s" if arg.size == 1 else "v" for arg in args]
            if kinds != ["s", "s"]:
                return node.op + {"vv": "", "vs": ".vs", "sv": ".sv"}["".join(kinds)], args
        return node.op, [self._spread(arg, node.size, routine) for arg in args]

    def _spread(self, view: View, size: int, routine: int) -> View:
        if view.size == size:
            return view
        for (number, _), known in list(self.constants.items()):
            if known == view:
                return self._constant(float(number), size)
        out = self._slot(size, routine).at(0, size)
        self._copy(routine, out, view)
        return out

    def _copy(self, routine: int, out: View, source: View) -> None:
        self._append(routine, "copy" if source.size == out.size else "expand", out, (source,))

    def _product(self, value: Value, node: Node, routine: int) -> View:
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
        self, terms: Sequence[tuple[Value, Value, Term]], start: View | None, out: View, routine: int
    ) -> View:
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

    def _out(self, value: Value, routine: int) -> View:
        size = self.nodes[value].size
        space = self.targets.pop((value, routine), None)
        if space is not None:
            slot = Slot(size, routine, Place(space, 0, size))
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
            sink(items)
        sizes = allocate(self.items, self.slots)
        return Code(
            self.program,
            self.spaces,
            tuple([final(item) for item in routine] for routine in self.items),
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
            home, whole = self.stages[value], self.nodes[value].op not in (*PARTS, "gradient")
            if whole and home is not None and home in MAKERS[routine] and (value, home) not in self.targets:
                self.targets[value, home] = space
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

    def _reductions(self) -> list[tuple[Reduction, View, View | None]]:
        if not self.wants.gradients:
            return []
        results, nowhere = self.program.results, Place(CONST, 0, 0)
        found: list[tuple[Reduction, View, View | None]] = []
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

    def _pieces(self, value: Value) -> list[View]:
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


def _joined(found: list[tuple[Reduction, View, View | None]]) -> list[Reduction]:
    """Placed; neighbours in memory and in the parameter become one."""
    joined: list[Reduction] = []
    for reduction, left, right in found:
        each = reduction._replace(left=place_of(left), right=None if right is None else place_of(right))
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
