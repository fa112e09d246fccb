"""Passes: each takes a program and gives one of the same meaning that costs less. `simplify` is all of them, in order.

*Hoisting* has no pass of its own: what leaves the loop is read off the rates that the builder gives.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from ritornello.errors import CellError
from ritornello.program.linear import linearise
from ritornello.program.ops import Term
from ritornello.program.program import (
    INPUT,
    PARAMETER,
    PREDECESSOR,
    UNKNOWN,
    Builder,
    Node,
    Program,
    Value,
    copy_node,
    live,
    products,
    prune,
    rewrite,
    users,
)

SUMS = ("add", "affine")
BOUNDED = ("sigmoid", "tanh", "erf", "sin", "cos")


def simplify(program: Program) -> Program:
    """Split, fold, linearise, merge, fuse."""
    return fuse(merge(linearise(fold(split(program)))))


def unroll(program: Program, slots: int) -> Program:
    """The program of rows with that many predecessors: what is computed for each of them stands there once for each.

    Args:
        program: as traced, for one predecessor, with `total` where they are summed.
        slots: predecessors of a row.

    Raises:
        CellError: a field of the state that keeps the predecessors apart; random numbers that may be theirs or not.
    """
    b = Builder()
    new: dict[Value, list[Value]] = {}
    streams = 1 + max((node.attributes[0] for node in program.nodes if node.op == "uniform"), default=0)
    for value in live(program.nodes, program.results):
        node = program.nodes[value]
        args = [new[arg] for arg in node.args]
        if node.op == "state":
            field = node.attributes[0]
            new[value] = [b.leaf("state", (field, slot), node.shape, node.rate) for slot in range(slots)]
        elif node.op == "total":
            new[value] = [_sum(b, args[0])]
        elif node.op == "uniform":
            stream, drawn_for = node.attributes
            if drawn_for == UNKNOWN and slots > 1:
                raise CellError(
                    f"whether each of {slots} predecessors draws random numbers of its own is not known where their "
                    "shape is told in numbers; draw them like a tensor, as torch.rand_like does"
                )
            own = slots if drawn_for == PREDECESSOR else 1
            new[value] = [b.leaf("uniform", (stream + k * streams,), node.shape, node.rate) for k in range(own)]
        else:
            copies = max((len(arg) for arg in args), default=1)
            each = [tuple(arg[k if len(arg) > 1 else 0] for arg in args) for k in range(copies)]
            new[value] = [copy_node(b, node, args) for args in each]
    for field, value in enumerate(program.results):
        if len(new[value]) > 1:
            raise CellError(
                f"field {field} of the new state keeps {slots} predecessors apart; sum them with total(...)"
            )
    results = tuple(new[value][0] for value in program.results)
    return prune(program._replace(nodes=tuple(b.nodes), results=results, slots=slots))


def _sum(b: Builder, values: Sequence[Value]) -> Value:
    total = values[0]
    for value in values[1:]:
        total = b.add(total, value)
    return total


def blank(program: Program, leaf: str) -> Program:
    """The same for rows whose states ("state") or whose input ("x") is zero: their products go, gates of nothing are
    not computed, all else is as it stood."""

    def rule(b: Builder, node: Node, args: tuple[Value, ...]) -> Value | None:
        if node.op == leaf:
            return b.expand(b.constant(0), node.size)
        if node.op in ("mul", "mul_add") and _is_nothing(b, *args[:2]):
            return b.expand(args[2] if node.op == "mul_add" else b.constant(0), node.size)
        if node.op == "mul_add" and _is_zero(b, args[2]):
            return b.expand(b.mul(*args[:2]), node.size)
        if node.op == "add":
            left = [arg for arg in args if not _is_zero(b, arg)]
            return None if len(left) == 2 else b.expand(left[0] if left else b.constant(0), node.size)
        return _without_zeros(b, node, args) if node.op == "affine" else None

    return simplify(rewrite(program, rule))


def _without_zeros(b: Builder, node: Node, args: tuple[Value, ...]) -> Value:
    start, rest = args[: len(args) % 2], args[len(args) % 2 :]
    terms = zip(rest[::2], rest[1::2], node.attributes[1], strict=True)
    left = [term for term in terms if not _is_zero(b, term[0])]
    if left:
        return b.affine(start[0] if start else None, left, node.size)
    return start[0] if start else b.expand(b.constant(0), node.size)


def _is_zero(b: Builder, value: Value) -> bool:
    node = b.nodes[value]
    return b.constant_of(node.args[0] if node.op == "expand" else value) == 0


def _is_nothing(b: Builder, one: Value, other: Value) -> bool:
    """Whether a product is zero, whatever the other factor is: it is never infinite."""
    if not _is_zero(b, one):
        one, other = other, one
    return _is_zero(b, one) and (b.nodes[other].op in BOUNDED or _is_zero(b, other))


def damp(program: Program) -> Program:
    """The same, but what goes back from a row to its predecessors' states is multiplied by a factor: x's new last
    column. Forwards it is never read."""
    size = program.inputs

    def rule(b: Builder, node: Node, args: tuple[Value, ...]) -> Value | None:
        if node.op not in ("x", "state"):
            return None
        x = b.leaf("x", (), (size + 1,), INPUT)
        return (
            b.slice(x, 0, size) if node.op == "x" else b.apply("damped", copy_node(b, node, args), b.slice(x, size, 1))
        )

    return rewrite(program, rule)._replace(inputs=size + 1)


def split(program: Program) -> Program:
    """A sum or product that is read in slices only becomes one for each slice, so that each can go its own way."""
    readers = users(program.nodes)
    cut: set[Value] = set()  # values that are read in slices only
    for value in range(len(program.nodes) - 1, -1, -1):
        node = program.nodes[value]
        if node.op not in SUMS or not readers[value] or value in program.results:
            continue
        if all(program.nodes[u].op == "slice" or (u in cut and node.size > 1) for u in readers[value]):
            cut.add(value)
    new_cut: set[Value] = set()
    b = Builder()
    new: dict[Value, Value] = {}
    for value in live(program.nodes, program.results):
        node = program.nodes[value]
        args = tuple(new[arg] for arg in node.args)
        if node.op == "slice":
            start, size = node.attributes
            new[value] = _sliced(b, args[0], start, size, new_cut)
        else:
            new[value] = copy_node(b, node, args)
        if value in cut:
            new_cut.add(new[value])
    return prune(program._replace(nodes=tuple(b.nodes), results=tuple(new[value] for value in program.results)))


def _sliced(b: Builder, value: Value, start: int, size: int, cut: set[Value]) -> Value:
    """A slice of a value; of a cut one, the sum of slices of its terms."""
    reached = [value]
    for each in reached:  # which grows
        if each in cut:
            reached += [arg for arg in _summed(b.nodes[each]) if b.size(arg) > 1 and arg not in reached]
    new: dict[Value, Value] = {}
    for each in sorted(reached):
        node = b.nodes[each]
        if each not in cut or (start == 0 and size == node.size):
            new[each] = b.slice(each, start, size)
        elif node.op == "add":
            new[each] = b.add(*(new.get(arg, arg) for arg in node.args))
        else:
            moved = [(v, w, t.moved(0, start) if t.back else t.moved(start, 0)) for v, w, t in products(node)]
            first = new.get(node.args[0], node.args[0]) if _summed(node) else None
            new[each] = b.affine(first, moved, size)
    return new[value]


def _summed(node: Node) -> tuple[Value, ...]:
    """The values, and not the products, that a sum adds up."""
    return node.args if node.op == "add" else node.args[: len(node.args) % 2]


def fold(program: Program) -> Program:
    """A sum with products becomes one affine for each rate: biases, and what is known earlier, are where it starts."""
    readers = users(program.nodes)
    inner = {
        value
        for value, node in enumerate(program.nodes)
        if node.op in SUMS and len(readers[value]) == 1 and value not in program.results
        if _goes_on(program.nodes[readers[value][0]], value)
        if program.nodes[readers[value][0]].size == node.size
    }
    b = Builder()
    new: dict[Value, Value] = {}
    parts: dict[Value, _Sum] = {}
    for value in live(program.nodes, program.results):
        node = program.nodes[value]
        if node.op not in SUMS:
            new[value] = copy_node(b, node, tuple(new[arg] for arg in node.args))
            continue
        terms = _Sum(node.size)
        for arg in _summed(node):
            if arg in inner:
                terms.extend(parts[arg])
            else:
                terms.values.append(new[arg])
        if node.op == "affine":
            for v, weight, term in products(node):
                terms.products.extend(_apart(b, new[v], new[weight], term))
        parts[value] = terms
        if value not in inner:
            plain = node.op == "add" and not terms.products
            new[value] = _plain(b, node, parts, new) if plain else terms.build(b)
    return prune(program._replace(nodes=tuple(b.nodes), results=tuple(new[value] for value in program.results)))


def _apart(b: Builder, v: Value, weight: Value, term: Term) -> Iterator[tuple[Value, Value, Term]]:
    """The product of values side by side is the sum of their products; zeros add nothing."""
    node = b.nodes[v]
    at = 0
    for part in node.args if node.op == "cat" else (v,):
        moved = term.moved(at, 0) if term.back else term.moved(0, at)
        at += b.size(part)
        if not _is_zero(b, part):
            yield part, weight, moved


def _goes_on(reader: Node, value: Value) -> bool:
    """Whether the value is summed further by its only reader."""
    return reader.op == "add" or (reader.op == "affine" and len(reader.args) % 2 == 1 and reader.args[0] == value)


def _plain(b: Builder, node: Node, parts: dict[Value, _Sum], new: dict[Value, Value]) -> Value:
    """A sum without products, added up as it stood."""
    args = [new[arg] if arg in new else _sum(b, parts[arg].values) for arg in node.args]
    return b.add(*args)


class _Sum:
    """The terms of a sum, in order."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.values: list[Value] = []
        self.products: list[tuple] = []

    def extend(self, other: _Sum) -> None:
        self.values.extend(other.values)
        self.products.extend(other.products)

    def build(self, b: Builder) -> Value:
        rates = sorted({b.rate(v) for v in self.values} | {self._rate(b, p) for p in self.products})
        total: Value | None = None
        for rate in rates:
            here = self._together(b, [p for p in self.products if self._rate(b, p) == rate])
            for value in (v for v in self.values if b.rate(v) == rate):
                total = value if total is None else b.add(total, value)
            if here:
                if total is not None and b.size(total) != self.size:
                    total = b.expand(total, self.size)
                total = b.affine(total, here, self.size)
        assert total is not None
        return total

    @staticmethod
    def _rate(b: Builder, product: tuple) -> int:
        return max(b.rate(product[0]), INPUT)

    @staticmethod
    def _together(b: Builder, products: Sequence[tuple]) -> list[tuple]:
        """What meets the same weights is added up before: so it is with what is summed over predecessors."""
        found: dict[tuple, Value] = {}
        for v, weight, term in products:
            key = (weight, term, b.size(v))
            found[key] = b.add(found[key], v) if key in found else v
        return [(v, weight, term) for (weight, term, _), v in found.items()]


def merge(program: Program) -> Program:
    """Products of the same rows with neighbouring windows of the same parameters become one, read in slices."""
    while True:
        groups = _mergeable(program)
        if not groups:
            return program
        program = _merged(program, groups)


def _mergeable(program: Program) -> list[list[Value]]:
    """Runs of affines whose windows continue one another and whose starts can be joined without copying."""
    alike: dict[tuple, list[tuple[int, Value]]] = defaultdict(list)
    for value, node in enumerate(program.nodes):
        if node.op != "affine" or node.rate <= PARAMETER:
            continue
        start = program.nodes[node.args[0]] if len(node.args) % 2 else None
        if start is not None and start.rate >= node.rate:
            continue  # its start may hang on one of the others
        terms = tuple(products(node))
        first = terms[0][2]
        at = first.column if first.back else first.row
        key = tuple(
            (v, weight, term.back, *((term.row, term.column - at) if term.back else (term.row - at, term.column)))
            for v, weight, term in terms
        )
        alike[key, _root(start, at, value)].append((at, value))
    runs = []
    for members in alike.values():
        members.sort()
        run = [members[0]]
        for at, value in members[1:]:
            if run[-1][0] + program.nodes[run[-1][1]].size == at:
                run.append((at, value))
            else:
                runs.append(run)
                run = [(at, value)]
        runs.append(run)
    return [[value for _, value in run] for run in runs if len(run) > 1]


def _root(start: Node | None, at: int, value: Value) -> tuple:
    """What the starts of affines have in common when they can be joined for nothing."""
    if start is None:
        return ("none",)
    if start.rate <= PARAMETER:
        return ("parameter",)
    return ("slice", start.args[0], start.attributes[0] - at) if start.op == "slice" else ("own", value)


def _merged(program: Program, groups: list[list[Value]]) -> Program:
    """Each group is made where the first of its members is needed."""
    member = {value: group for group in groups for value in group}
    b = Builder()
    new: dict[Value, Value] = {}
    waiting = list(reversed(program.results))
    while waiting:
        group = member.get(waiting[-1], [waiting[-1]])
        read = [arg for each in group for arg in program.nodes[each].args if arg not in new]
        if waiting[-1] in new:
            waiting.pop()
        elif read:
            waiting += reversed(read)
        elif len(group) > 1:
            new.update(_as_one(b, program, group, new))
        else:
            new[group[0]] = copy_node(b, program.nodes[group[0]], tuple(new[a] for a in program.nodes[group[0]].args))
    results = tuple(new[value] for value in program.results)
    return rewrite(program._replace(nodes=tuple(b.nodes), results=results))


def _as_one(b: Builder, program: Program, group: list[Value], new: dict[Value, Value]) -> dict[Value, Value]:
    """The members of a group as slices of one affine."""
    nodes = [program.nodes[value] for value in group]
    start = b.cat([new[node.args[0]] for node in nodes]) if len(nodes[0].args) % 2 else None
    sizes = [node.size for node in nodes]
    terms = [(new[v], new[weight], term) for v, weight, term in products(nodes[0])]
    whole = b.affine(start, terms, sum(sizes))
    return {value: b.slice(whole, sum(sizes[:k]), sizes[k]) for k, value in enumerate(group)}


def fuse(program: Program) -> Program:
    """A product that is added once becomes part of the addition."""
    readers = users(program.nodes)

    def rule(b: Builder, node: Node, args: tuple[Value, ...]) -> Value | None:
        if node.op != "add" or node.rate <= PARAMETER:
            return None
        for k in (1, 0):
            arg = node.args[k]
            inner = program.nodes[arg]
            if inner.op == "mul" and len(readers[arg]) == 1 and arg not in program.results and inner.size == node.size:
                left, right = b.nodes[args[k]].args if b.nodes[args[k]].op == "mul" else (None, None)
                if left is not None and right is not None:
                    return b.mul_add(left, right, args[1 - k])
        return None

    return rewrite(program, rule)
