"""The adjoint: reverse-mode differentiation of a program, from one derivative row per op.

With W⁽ᵗ⁾ a copy of W that is used at step t alone (the textbook's device; Goodfellow, Bengio & Courville, section
10.2.2), the gradient of W is Σₜ δₜ sₜᵀ: it leaves the loop, as one product over all rows at the end. What is left in
the loop is the way of the gradient from a row's state to its predecessors'.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from ritornello.program.ops import OPS, Term
from ritornello.program.passes import fold, fuse
from ritornello.program.program import GRADIENT, INPUT, PARAMETER, Builder, Program, Value, copy_node, products


@dataclass(frozen=True)
class WeightGradient:
    """A window of a parameter's gradient, Σ over rows of leftᵀ right.

    Attributes:
        parameter, left, right: positions in the joint program's results.
        row, column: the window's corner.
    """

    parameter: Value
    row: int
    column: int
    left: int
    right: int


@dataclass(frozen=True)
class VectorGradient:
    """A vector parameter's gradient: Σ over rows of a value ; both are positions in the results."""

    parameter: Value
    value: int


@dataclass(frozen=True)
class Joint:
    """A step and its adjoint, in one program.

    Its leaves ("gradient", field) are the gradients of the row's own new state. Its results, in order: the new state,
    the gradients of each slot's state fields, x's gradient, then what parameters' gradients are made of.

    Attributes:
        program: of all of them.
        forward: how many results are the new state.
        states: how many are gradients of predecessors' states, slot by slot.
        weights, vectors: parameters' gradients.

    """

    program: Program
    forward: int
    states: int
    weights: tuple[WeightGradient, ...]
    vectors: tuple[VectorGradient, ...]

    @property
    def x_gradient(self) -> int:
        """Position of x's gradient among the results."""
        return self.forward + self.states


def derive(program: Program) -> Joint:
    """A program together with its adjoint.

    Gradients that vanish everywhere (of a state that is never read) are the constant 0.
    """
    b = Builder()
    new: dict[Value, Value] = {}
    for value, node in enumerate(program.nodes):
        new[value] = copy_node(b, node, tuple(new[arg] for arg in node.args))
    forward = list(dict.fromkeys(new[v] for v in range(len(program.nodes))))
    sums = _Gradients(b)
    for field, value in enumerate(program.results):
        if b.rate(new[value]) > PARAMETER:
            size = program.fields[field]
            sums.add(new[value], b.leaf("gradient", (field,), (size,), GRADIENT))
        elif b.rate(new[value]) == PARAMETER:
            sums.vectors.append((new[value], b.leaf("gradient", (field,), (program.fields[field],), GRADIENT)))
    for value in sorted(forward, reverse=True):
        if b.rate(value) >= INPUT:
            sums.through(value)
    known = {(b.nodes[v].op, b.nodes[v].attributes): v for v in forward if not b.nodes[v].args}

    def of(op: str, attributes: tuple, size: int) -> Value:
        leaf = known.get((op, attributes))
        found = None if leaf is None else sums.finished.get(leaf)
        return b.expand(b.constant(0), size) if found is None else found

    results = [new[value] for value in program.results]
    for slot in range(program.slots):
        results += [of("state", (field, slot), size) for field, size in enumerate(program.fields)]
    results.append(of("x", (), program.inputs))
    weights, vectors = [], []
    for parameter, term, left, right in sums.weights:
        weights.append((parameter, term, len(results)))
        results += [left, right, parameter]
    for parameter, value in sums.vectors:
        vectors.append((parameter, len(results)))
        results += [value, parameter]
    whole = fuse(fold(program._replace(nodes=tuple(b.nodes), results=tuple(results))))
    return Joint(
        whole,
        len(program.results),
        program.slots * len(program.fields),
        tuple(WeightGradient(at + 2, term.row, term.column, at, at + 1) for _, term, at in weights),
        tuple(VectorGradient(at + 1, at) for _, at in vectors),
    )


class _Gradients:
    """Gradients on their way back through the nodes."""

    def __init__(self, b: Builder) -> None:
        self.b = b
        self.parts: dict[Value, list[Value]] = defaultdict(list)
        self.pieces: dict[Value, list[tuple[int, Value]]] = defaultdict(list)
        self.finished: dict[Value, Value] = {}
        self.weights: list[tuple[Value, Term, Value, Value]] = []
        self.vectors: list[tuple[Value, Value]] = []

    def add(self, value: Value, d: Value) -> None:
        """One more term of the value's gradient; a parameter's is a sum over rows too, done later."""
        b = self.b
        if b.constant_of(d) == 0 or b.rate(value) < PARAMETER:
            return
        if b.size(value) < b.size(d):
            d = b.sum(d)
        elif b.size(value) > b.size(d):
            d = b.expand(d, b.size(value))
        if b.rate(value) == PARAMETER:
            self.vectors.append((value, d))
        else:
            self.parts[value].append(d)

    def through(self, value: Value) -> None:
        """Passes the value's gradient, now complete, on to its arguments."""
        d = self._sum(value)
        if d is None:
            return
        self.finished[value] = d
        b, node = self.b, self.b.nodes[value]
        if node.op == "slice":
            self.pieces[node.args[0]].append((node.attributes[0], d))
        elif node.op == "cat":
            offset = 0
            for arg in node.args:
                self.add(arg, b.slice(d, offset, b.size(arg)))
                offset += b.size(arg)
        elif node.op == "affine":
            self._affine(value, d)
        elif node.args:
            derivative = OPS[node.op].derivative
            assert derivative is not None, f"{node.op} has no derivative"
            for arg, each in zip(node.args, derivative(b, d, node.args, value), strict=True):
                if each is not None:
                    self.add(arg, each)

    def _affine(self, value: Value, d: Value) -> None:
        b, node = self.b, self.b.nodes[value]
        if len(node.args) % 2:
            self.add(node.args[0], d)
        for v, weight, term in products(node):
            if b.rate(v) >= INPUT:
                self.add(v, b.affine(None, [(d, weight, term._replace(back=not term.back))], b.size(v)))
            self.weights.append((weight, term, v, d) if term.back else (weight, term, d, v))

    def _sum(self, value: Value) -> Value | None:
        """The value's whole gradient: what came whole, and what came in slices, put side by side where they fit."""
        b = self.b
        parts = self.parts[value]
        total: Value | None = None
        for part in parts:
            total = part if total is None else b.add(total, part)
        for row in _rows_of_pieces(b, self.pieces[value]):
            filled = self._side_by_side(row, b.size(value))
            total = filled if total is None else b.add(total, filled)
        return total

    def _side_by_side(self, pieces: list[tuple[int, Value]], size: int) -> Value:
        b = self.b
        zero = b.constant(0)
        whole: list[Value] = []
        at = 0
        for start, d in pieces:
            if start > at:
                whole.append(b.expand(zero, start - at))
            whole.append(d)
            at = start + b.size(d)
        if at < size:
            whole.append(b.expand(zero, size - at))
        return b.cat(whole)


def _rows_of_pieces(b: Builder, pieces: list[tuple[int, Value]]) -> list[list[tuple[int, Value]]]:
    """Pieces of a gradient laid into as few rows as hold them without overlap."""
    rows: list[list[tuple[int, Value]]] = []
    for start, d in sorted(pieces):
        row = next((row for row in rows if row[-1][0] + b.size(row[-1][1]) <= start), None)
        if row is None:
            rows.append([(start, d)])
        else:
            row.append((start, d))
    return rows
