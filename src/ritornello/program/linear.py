"""Recurrences that are linear in the state, h = a · h' + b with a and b known without it: there the loop is a prefix
scan, and no product is left in it (leaky cells, minGRU, minLSTM, QRNN, SRU, linear recurrent units).

A field's a and b may hang on other fields, if these come first: fields are solved one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ritornello.program.ops import ELEMENTS, OPS, REDUCTION
from ritornello.program.program import STATE, Builder, Node, Program, Value, copy_node, live, prune


class _Form(NamedTuple):
    """A field's old state times a, plus b; None for 1 and for 0."""

    a: Value | None
    b: Value | None


class _Side(NamedTuple):
    """What is known of a value: itself, where the state has no part in it, or its form."""

    known: Value | None
    form: _Form | None


def scanned(program: Program) -> tuple[int, ...] | None:
    """The fields in an order in which each is linear in its own old state, given those before it; None without one.

    Fields that only follow from others come where these are known.
    """
    if program.slots > 1:
        return None
    reads = _reads(program)
    order: list[int] = []
    while len(order) < len(program.fields):
        left = [field for field in range(len(program.fields)) if field not in order]
        solved = next((field for field in left if _is_linear(program, reads, field, frozenset(order))), None)
        if solved is None:
            return None
        order.append(solved)
    return tuple(order)


def linearise(program: Program) -> Program:
    """Fields that are linear in their own old state, with a and b known before the loop, become a · h' + b where that
    leaves less in the loop."""
    for field in range(len(program.fields)):  # what one becomes changes nothing for the others
        reads, result = _reads(program), program.results[field]
        if reads[result] != {field} or program.slots > 1:
            continue
        b = Builder()
        new, side = _solved(program, b, reads, field, frozenset())
        if side.form is None:
            continue
        old = b.leaf("state", (field, 0), (program.fields[field],), STATE)
        new[result] = _written(b, side.form, old)
        for value, node in enumerate(program.nodes):  # what follows reads the new one
            if value not in new:
                new[value] = copy_node(b, node, tuple(new[arg] for arg in node.args))
        made = prune(program._replace(nodes=tuple(b.nodes), results=tuple(new[value] for value in program.results)))
        if _loop_cost(made) < _loop_cost(program):
            program = made
    return program


def _reads(program: Program) -> list[frozenset[int]]:
    """For each value the fields of the old state that it hangs on."""
    found: list[frozenset[int]] = []
    for node in program.nodes:
        own = {node.attributes[0]} if node.op == "state" else set()
        found.append(frozenset(own.union(*(found[arg] for arg in node.args))))
    return found


def _is_linear(program: Program, reads: list[frozenset[int]], field: int, solved: frozenset[int]) -> bool:
    result = program.results[field]
    if not reads[result] <= solved | {field}:
        return False
    _, side = _solved(program, Builder(), reads, field, solved)
    return side.known is not None or side.form is not None


def _solved(
    program: Program, b: Builder, reads: list[frozenset[int]], field: int, solved: frozenset[int]
) -> tuple[dict[Value, Value], _Side]:
    """What the new field is in its own old state, given those that are solved; written behind a copy of its nodes."""
    new: dict[Value, Value] = {}
    sides: dict[Value, _Side] = {}
    result = program.results[field]
    for value in live(program.nodes, [result]):
        node = program.nodes[value]
        new[value] = copy_node(b, node, tuple(new[arg] for arg in node.args))
        sides[value] = _side(b, node, new[value], [sides[arg] for arg in node.args], reads[value], field, solved)
    return new, sides[result]


def _side(
    b: Builder, node: Node, value: Value, args: list[_Side], reads: frozenset[int], field: int, solved: frozenset[int]
) -> _Side:
    if reads <= solved:
        return _Side(value, None)
    if node.op == "state":
        return _Side(None, _Form(None, None) if node.attributes[0] == field else None)
    return _Side(None, _combined(b, node.op, args))


def _combined(b: Builder, op: str, args: list[_Side]) -> _Form | None:
    """The form of an op's result; None where it is not linear."""
    if op == "neg" and args[0].form is not None:
        return _scaled(b, args[0].form, b.constant(-1))
    if op == "add":
        return _added(b, args[0], args[1])
    if op == "sub":
        known, form = args[1]
        negative = _Side(
            None if known is None else b.neg(known), None if form is None else _scaled(b, form, b.constant(-1))
        )
        return _added(b, args[0], negative)
    if op == "mul":
        return _product(b, args[0], args[1])
    if op == "mul_add":
        both = args[0].known is not None and args[1].known is not None
        plain = b.mul(args[0].known, args[1].known) if both else None
        return _added(b, _Side(plain, _product(b, args[0], args[1])), args[2])
    if op == "div" and args[0].form is not None and args[1].known is not None:
        a, rest = args[0].form
        by = args[1].known
        return _Form(b.div(b.constant(1) if a is None else a, by), None if rest is None else b.div(rest, by))
    return None


def _product(b: Builder, one: _Side, other: _Side) -> _Form | None:
    if one.form is not None and other.known is not None:
        return _scaled(b, one.form, other.known)
    if other.form is not None and one.known is not None:
        return _scaled(b, other.form, one.known)
    return None


def _scaled(b: Builder, form: _Form, by: Value) -> _Form:
    return _Form(by if form.a is None else b.mul(form.a, by), None if form.b is None else b.mul(form.b, by))


def _added(b: Builder, one: _Side, other: _Side) -> _Form | None:
    if one.form is None:
        one, other = other, one
    if one.form is None:
        return None
    a, rest = one.form
    if other.form is not None:
        ones = [b.constant(1) if each is None else each for each in (a, other.form.a)]
        return _Form(b.add(*ones), _sum(b, [rest, other.form.b]))
    return None if other.known is None else _Form(a, _sum(b, [rest, other.known]))


def _sum(b: Builder, values: Iterable[Value | None]) -> Value | None:
    there = [value for value in values if value is not None]
    return b.add(*there) if len(there) == 2 else there[0] if there else None


def _written(b: Builder, form: _Form, old: Value) -> Value:
    size = b.size(old)
    if form.a is None:
        return old if form.b is None else b.add(old, form.b)
    if form.b is None:
        return b.mul(form.a, old)
    return b.mul_add(form.a, old, b.expand(form.b, size) if b.size(form.b) == 1 else form.b)


def _loop_cost(program: Program) -> float:
    """What the loop computes a row, in multiplications."""
    inside = (node for node in program.nodes if node.rate >= STATE and node.op in OPS)
    return sum(OPS[node.op].cost * node.size for node in inside if OPS[node.op].kind in (ELEMENTS, REDUCTION))
