"""What a cell becomes: straight-line code over the rows of a structure."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ritornello.program.ops import ELEMENTS, OPS, REDUCTION, Term, no_gradient

Value = int

CONSTANT, PARAMETER, INPUT, STATE, GRADIENT = range(5)
ROW, UNKNOWN, PREDECESSOR = range(3)  # what random numbers are drawn for: a row, or each of its predecessors
RATES = ("constant", "parameter", "input", "state", "gradient")


class Node(NamedTuple):
    """One value.

    Attributes:
        op: a name of the op table, or a leaf: "x", "state", "parameter", "constant", "call".
        args: the values it is computed from.
        attributes: numbers and words that belong to the op.
        shape: of a row's value (size,); of a parameter its own.
        rate: the fastest thing that it depends on: nothing, parameters, the row's input, the predecessors' states.
    """

    op: str
    args: tuple[Value, ...]
    attributes: tuple[Any, ...]
    shape: tuple[int, ...]
    rate: int

    @property
    def size(self) -> int:
        """Elements of a row's value."""
        return self.shape[-1] if self.shape else 1


class Program(NamedTuple):
    """A cell's step.

    Attributes:
        nodes: in the order of computation; a value is its index.
        results: the new state's fields.
        fields: sizes of the state's fields.
        inputs: size of x.
        slots: how many predecessors a row has; states are leaves ("state", field, slot).
    """

    nodes: tuple[Node, ...]
    results: tuple[Value, ...]
    fields: tuple[int, ...]
    inputs: int
    slots: int = 1

    def to_text(self) -> str:
        """The program as JSON, the same for equal programs."""
        return json.dumps(self, separators=(",", ":"))

    @staticmethod
    def from_text(text: str) -> Program:
        """The way back."""
        nodes, results, fields, inputs, slots = json.loads(text)
        read = tuple(
            Node(op, tuple(args), _tuples(op, attrs), tuple(shape), rate) for op, args, attrs, shape, rate in nodes
        )
        return Program(read, tuple(results), tuple(fields), inputs, slots)


def _tuples(op: str, attributes: Any) -> tuple[Any, ...]:
    if op == "affine":
        size, terms = attributes
        return size, tuple(Term(*term) for term in terms)
    return _nested(attributes)


def _nested(value: Any) -> Any:
    return tuple(_nested(item) for item in value) if isinstance(value, list) else value


class Builder:
    """Writes nodes: sizes and rates follow from the arguments, equal nodes are one, constants are computed at once.

    Every element-wise op and reduction is a method of its name: `b.add(u, v)`.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._known: dict[Any, Value] = {}

    def __getattr__(self, name: str) -> Callable[..., Value]:
        if name not in OPS or OPS[name].kind not in (ELEMENTS, REDUCTION):
            raise AttributeError(name)
        return lambda *args: self.apply(name, *args)

    def size(self, value: Value) -> int:
        return self.nodes[value].size

    def rate(self, value: Value) -> int:
        return self.nodes[value].rate

    def is_differentiable(self, value: Value) -> bool:
        """Whether it depends smoothly on x or a state; tensors of parameters tell of themselves."""
        waiting, seen = [value], {value}
        for each in waiting:  # which grows
            node = self.nodes[each]
            if node.op in ("x", "state"):
                return True
            if not (node.op in OPS and OPS[node.op].derivative is no_gradient):
                waiting += [arg for arg in node.args if arg not in seen]
                seen.update(node.args)
        return False

    def leaf(
        self, op: str, attributes: tuple[Any, ...], shape: Sequence[int], rate: int, args: Sequence[Value] = ()
    ) -> Value:
        return self._add(Node(op, tuple(args), attributes, tuple(shape), rate))

    def constant(self, number: float) -> Value:
        """The same number in every row, of size 1."""
        return self.leaf("constant", (float(number),), (1,), CONSTANT)

    def constant_of(self, value: Value) -> float | None:
        """The number that a constant holds; None for other values."""
        node = self.nodes[value]
        return node.attributes[0] if node.op == "constant" else None

    def apply(self, op: str, *args: Value) -> Value:
        """An element-wise op, a reduction, or another op without attributes."""
        sizes = [self.size(arg) for arg in args]
        if OPS[op].kind == ELEMENTS:
            size = max(sizes)
            assert all(each in (1, size) for each in sizes), f"{op} of sizes {sizes}"
            simpler = self._simpler(op, args, size)
            if simpler is not None:
                return simpler
        elif OPS[op].kind == REDUCTION:
            if sizes == [1]:
                return args[0]
            size = 1
        elif op == "outer":
            size = sizes[0] * sizes[1]
        elif op in ("outer_right", "outer_left"):
            size = sizes[0] // sizes[1]
        else:
            assert op in ("total", "damped"), op
            size = sizes[0]
        return self._add(Node(op, args, (), (size,), self._rate(args)))

    def slice(self, value: Value, start: int, size: int) -> Value:
        node = self.nodes[value]
        if start == 0 and size == node.size:
            return value
        if node.op == "slice":
            return self.slice(node.args[0], node.attributes[0] + start, size)
        if node.op == "cat":
            offset = 0
            for part in node.args:
                if offset <= start and start + size <= offset + self.size(part):
                    return self.slice(part, start - offset, size)
                offset += self.size(part)
        if node.op == "expand":
            return self.expand(node.args[0], size)
        return self._add(Node("slice", (value,), (start, size), (size,), node.rate))

    def cat(self, values: Sequence[Value]) -> Value:
        flat: list[Value] = []
        for value in values:
            node = self.nodes[value]
            flat.extend(node.args if node.op == "cat" else (value,))
        joined: list[Value] = []
        for value in flat:
            if joined and (whole := self._joined(joined[-1], value)) is not None:
                joined[-1] = whole
            else:
                joined.append(value)
        if len(joined) == 1:
            return joined[0]
        return self._add(Node("cat", tuple(joined), (), (sum(map(self.size, joined)),), self._rate(joined)))

    def _joined(self, left: Value, right: Value) -> Value | None:
        """Two neighbouring slices of one value are one slice, and sums of such slices one sum."""
        a, b = self.nodes[left], self.nodes[right]
        if a.op == b.op == "slice" and a.args == b.args and sum(a.attributes) == b.attributes[0]:
            return self.slice(a.args[0], a.attributes[0], a.size + b.size)
        if a.op == b.op and OPS.get(a.op) and OPS[a.op].kind == ELEMENTS and a.rate == b.rate == PARAMETER:
            joined = [self._joined(one, other) for one, other in zip(a.args, b.args, strict=True)]
            return None if None in joined else self.apply(a.op, *joined)  # type: ignore[arg-type]
        return None

    def expand(self, value: Value, size: int) -> Value:
        if self.size(value) == size:
            return value
        assert self.size(value) == 1
        return self._add(Node("expand", (value,), (size,), (size,), self.rate(value)))

    def affine(self, start: Value | None, products: Iterable[tuple[Value, Value, Term]], size: int) -> Value:
        """start + Σ v W, each W a window of a parameter."""
        args: list[Value] = [] if start is None else [start]
        terms = []
        for v, weight, term in products:
            rows, columns = (self.size(v), size) if term.back else (size, self.size(v))
            shape = self.nodes[weight].shape
            assert term.row + rows <= shape[0], (shape, term, rows)
            assert term.column + columns <= shape[1], (shape, term, columns)
            args += [v, weight]
            terms.append(term)
        return self._add(Node("affine", tuple(args), (size, tuple(terms)), (size,), self._rate(args)))

    def _rate(self, args: Iterable[Value]) -> int:
        return max((self.rate(arg) for arg in args), default=CONSTANT)

    def _add(self, node: Node) -> Value:
        key = (node, str(node.attributes)) if node.op == "constant" else node  # 0 is not -0, NaN is NaN
        value = self._known.get(key)
        if value is None:
            value = self._known[key] = len(self.nodes)
            self.nodes.append(node)
        return value

    def _simpler(self, op: str, args: Sequence[Value], size: int) -> Value | None:
        """What needs no computing: constants alone, ±0 and 1 where the result is exactly the other argument."""
        numbers = [self.constant_of(arg) for arg in args]
        if all(number is not None for number in numbers):
            return self._folded(op, numbers)
        whole = [arg for arg in args if self.size(arg) == size]
        if op == "mul" and 1.0 in numbers:
            return args[1 - numbers.index(1.0)]
        if op in ("sub", "add") and numbers[1] == 0 and self._adds_nothing(op, numbers[1]):
            return args[0]
        if op == "div" and numbers[1] == 1:
            return args[0]
        if op == "pow" and numbers[1] in (1.0, 2.0, 3.0, -1.0, 0.5, -0.5):
            return self._power(args[0], numbers[1])
        if op == "neg" and self.nodes[args[0]].op == "neg":
            return self.nodes[args[0]].args[0]
        if op == "where" and args[1] == args[2] and args[1] in whole:
            return args[1]
        return None

    @staticmethod
    def _adds_nothing(op: str, zero: float) -> bool:
        """x - 0 and x + -0 are x, also for x = -0; x + 0 is not."""
        return (str(zero) == "-0.0") == (op == "add")

    def _folded(self, op: str, numbers: Sequence[float | None]) -> Value:
        import torch

        tensors = [torch.tensor(number, dtype=torch.float64) for number in numbers]
        return self.constant(float(OPS[op].meaning(*tensors)))

    def _power(self, x: Value, exponent: float) -> Value:
        if exponent == 1:
            return x
        if exponent == 2:
            return self.mul(x, x)
        if exponent == 3:
            return self.mul(self.mul(x, x), x)
        return {-1.0: self.reciprocal, 0.5: self.sqrt, -0.5: self.rsqrt}[exponent](x)


Rule = Callable[[Builder, Node, tuple[Value, ...]], Value | None]


def copy_node(b: Builder, node: Node, args: tuple[Value, ...]) -> Value:
    """The same node in another builder, with its simplifications."""
    if node.op == "slice":
        return b.slice(args[0], *node.attributes)
    if node.op == "cat":
        return b.cat(args)
    if node.op == "expand":
        return b.expand(args[0], *node.attributes)
    if node.op == "affine":
        start = args[0] if len(args) % 2 else None
        rest = args[len(args) % 2 :]
        return b.affine(start, zip(rest[::2], rest[1::2], node.attributes[1], strict=True), node.size)
    if node.op in OPS:
        return b.apply(node.op, *args)
    return b.leaf(node.op, node.attributes, node.shape, node.rate, args)


def rewrite(program: Program, rule: Rule | None = None) -> Program:
    """A new program, node by node: what the rule gives, or else the same node; dead nodes go.

    Args:
        rule: (builder, node, its arguments in the builder) to the node's value there, or None to copy it.
    """
    b = Builder()
    new: dict[Value, Value] = {}
    for value in live(program.nodes, program.results):
        node = program.nodes[value]
        args = tuple(new[arg] for arg in node.args)
        made = rule(b, node, args) if rule is not None else None
        new[value] = copy_node(b, node, args) if made is None else made
    return prune(program._replace(nodes=tuple(b.nodes), results=tuple(new[value] for value in program.results)))


def prune(program: Program) -> Program:
    """Without the nodes that no result needs."""
    kept = live(program.nodes, program.results)
    new = {value: index for index, value in enumerate(kept)}
    nodes = tuple(program.nodes[v]._replace(args=tuple(new[a] for a in program.nodes[v].args)) for v in kept)
    return program._replace(nodes=nodes, results=tuple(new[value] for value in program.results))


def live(nodes: Sequence[Node], results: Iterable[Value], known: Container[Value] = ()) -> list[Value]:
    """The values that the results need, in order; what only known values need is left out."""
    needed = set(results)
    for value in range(len(nodes) - 1, -1, -1):
        if value in needed and value not in known:
            needed.update(nodes[value].args)
    return sorted(needed)


def users(nodes: Sequence[Node]) -> list[list[Value]]:
    """For each value the nodes that read it, in order, once for each time."""
    found: list[list[Value]] = [[] for _ in nodes]
    for value, node in enumerate(nodes):
        for arg in node.args:
            found[arg].append(value)
    return found


def products(node: Node) -> Iterator[tuple[Value, Value, Term]]:
    """The (v, W, term) of an affine node."""
    rest = node.args[len(node.args) % 2 :]
    return zip(rest[::2], rest[1::2], node.attributes[1], strict=True)
