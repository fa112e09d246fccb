"""Which states a program is linear in: there the recurrence h = a · h' + b is a prefix scan, and no product is left in
the loop (leaky cells, minGRU, minLSTM, QRNN, SRU)."""

from __future__ import annotations

from typing import NamedTuple

from ritornello.program.program import STATE, Builder, Program, Value, copy_node


class Linear(NamedTuple):
    """A field's new state as a · (its old one) + b, element by element, with a and b free of states.

    Attributes:
        program: that computes them: its results are a and b of each field in turn.
    """

    program: Program


class _Form(NamedTuple):
    """field's state times a, plus b; None for 1 and for 0."""

    field: int
    a: Value | None
    b: Value | None


def linear(program: Program) -> Linear | None:
    """The program's linear form, if every field is linear in its own old state and reads no other."""
    b = Builder()
    free: dict[Value, Value] = {}
    forms: dict[Value, _Form] = {}
    for value, node in enumerate(program.nodes):
        if node.rate < STATE:
            free[value] = copy_node(b, node, tuple(free[arg] for arg in node.args))
        elif node.op == "state":
            forms[value] = _Form(node.attributes[0], None, None)
        else:
            form = _combined(b, node.op, [forms.get(arg) for arg in node.args], [free.get(arg) for arg in node.args])
            if form is not None:
                forms[value] = form
    results: list[Value] = []
    for field, value in enumerate(program.results):
        form = forms.get(value)
        if value in free:
            results += [b.constant(0), free[value]]
        elif form is not None and form.field == field:
            results += [b.constant(1) if form.a is None else form.a, b.constant(0) if form.b is None else form.b]
        else:
            return None
    return Linear(program._replace(nodes=tuple(b.nodes), results=tuple(results)))


def _combined(b: Builder, op: str, forms: list[_Form | None], free: list[Value | None]) -> _Form | None:
    """The form of an op's result; None where it is not linear."""
    if op == "total":
        return forms[0]
    if op == "neg" and forms[0] is not None:
        return _scaled(b, forms[0], b.constant(-1))
    if op in ("add", "sub"):
        right, known = forms[1], free[1]
        if op == "sub":
            right = _scaled(b, right, b.constant(-1)) if right is not None else None
            known = b.neg(known) if known is not None else None
        return _added(b, (forms[0], free[0]), (right, known))
    if op == "mul":
        return _product(b, (forms[0], free[0]), (forms[1], free[1]))
    if op == "mul_add":
        product = _product(b, (forms[0], free[0]), (forms[1], free[1]))
        plain = b.mul(free[0], free[1]) if free[0] is not None and free[1] is not None else None
        return _added(b, (product, plain), (forms[2], free[2]))
    if op == "div" and forms[0] is not None and free[1] is not None:
        return _scaled(b, forms[0], b.reciprocal(free[1]))
    return None


_Side = tuple[_Form | None, Value | None]


def _product(b: Builder, one: _Side, other: _Side) -> _Form | None:
    if one[0] is not None and other[1] is not None:
        return _scaled(b, one[0], other[1])
    if other[0] is not None and one[1] is not None:
        return _scaled(b, other[0], one[1])
    return None


def _scaled(b: Builder, form: _Form, by: Value) -> _Form:
    return _Form(form.field, by if form.a is None else b.mul(form.a, by), None if form.b is None else b.mul(form.b, by))


def _added(b: Builder, one: _Side, other: _Side) -> _Form | None:
    if one[0] is None and other[0] is not None:
        one, other = other, one
    form, more = one[0], other[0]
    if form is None:
        return None
    if more is not None:
        if more.field != form.field:
            return None
        a = b.add(b.constant(1) if form.a is None else form.a, b.constant(1) if more.a is None else more.a)
        both = [value for value in (form.b, more.b) if value is not None]
        return _Form(form.field, a, b.add(*both) if len(both) == 2 else (both[0] if both else None))
    if other[1] is None:
        return None
    return _Form(form.field, form.a, other[1] if form.b is None else b.add(form.b, other[1]))
