"""A program, readably: what left the loop, what the loop does, what it keeps and what it costs."""

from __future__ import annotations

from collections.abc import Sequence

from ritornello.program.code import AFTER, BACK, BEFORE, LOOP, Code, Product
from ritornello.program.derive import derive
from ritornello.program.linear import scanned
from ritornello.program.lower import Wants, lower
from ritornello.program.ops import OPS
from ritornello.program.program import INPUT, PARAMETER, STATE, Node, Program, Value, products

_INFIX = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "gt": ">",
    "ge": ">=",
    "lt": "<",
    "le": "<=",
    "eq": "==",
    "ne": "!=",
}
_LONGEST = 200  # characters of what a parameter is computed from
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def show(program: Program, fields: Sequence[str]) -> str:
    """The program as text.

    Args:
        program: simplified, for one predecessor.
        fields: names of the state's fields.
    """
    printer = _Printer(program, fields)
    fast = [v for v, node in enumerate(program.nodes) if node.rate == INPUT and node.op != "x"]
    loop = [v for v, node in enumerate(program.nodes) if node.rate == STATE and node.op != "state"]
    lines = ["before the loop, for all rows at once:", *(printer.lines(fast) or ["  nothing"])]
    lines += ["in the loop:", *(printer.lines(loop) or ["  nothing"])]
    lines += [f"  {name} = {printer.name(value)}" for name, value in zip(fields, program.results, strict=True)]
    return "\n".join([*lines, "", *_costs(program, printer)])


class _Printer:
    def __init__(self, program: Program, fields: Sequence[str]) -> None:
        self.program, self.fields = program, fields
        self.names: dict[Value, str] = {}
        for value, node in enumerate(program.nodes):
            if node.rate <= PARAMETER:
                self.names[value] = self.parameter(node)
        self.numbered = len(self.names)

    def lines(self, values: Sequence[Value]) -> list[str]:
        found = []
        for value in values:
            node = self.program.nodes[value]
            if node.op in ("slice", "expand"):
                continue
            found.append(f"  {self.name(value)} : {node.size} = {self.meaning(node)}")
        return found

    def name(self, value: Value) -> str:
        node = self.program.nodes[value]
        if node.op == "x":
            return "x"
        if node.op == "state":
            field, slot = node.attributes
            return (
                f"{self.fields[field]}'" if self.program.slots == 1 else f"{self.fields[field]}{_subscript(slot + 1)}"
            )
        if node.rate <= PARAMETER:
            return self.names[value]
        if node.op == "slice":
            start, size = node.attributes
            return f"{self.name(node.args[0])}[{start}:{start + size}]"
        if node.op == "expand":
            return self.name(node.args[0])
        return self.names.setdefault(value, "v" + _subscript(len(self.names) - self.numbered + 1))

    def parameter(self, node: Node) -> str:
        if node.op == "constant":
            return f"{node.attributes[0]:g}"
        if node.op == "parameter":
            return str(node.attributes[0])
        inner = ", ".join(self.name(arg) for arg in node.args)
        inner = inner if len(inner) <= _LONGEST else "…"
        if node.op == "slice":
            return f"{inner}[{node.attributes[0]}:{sum(node.attributes)}]"
        word = str(node.attributes[0]).partition(".")[0] if node.op == "call" else node.op
        return f"{word}({inner})"

    def meaning(self, node: Node) -> str:
        if node.op == "affine":
            start = [self.name(node.args[0])] if len(node.args) % 2 else []
            return " + ".join(start + [self.product(v, w, t, node.size) for v, w, t in products(node)])
        args = [self.name(arg) for arg in node.args]
        if node.op in _INFIX:
            return f" {_INFIX[node.op]} ".join(args)
        if node.op == "mul_add":
            return f"{args[0]} * {args[1]} + {args[2]}"
        if node.op == "where":
            return f"{args[1]} if {args[0]} else {args[2]}"
        return f"{node.op}({', '.join(args)})"

    def product(self, v: Value, weight: Value, term: tuple[int, int, bool], size: int) -> str:
        row, column, back = term
        length = self.program.nodes[v].size
        rows, columns = (length, size) if back else (size, length)
        shape = self.program.nodes[weight].shape
        window = "" if (rows, columns) == shape else f"[{row}:{row + rows}, {column}:{column + columns}]"
        return f"{self.name(v)} @ {self.name(weight)}{window}{'' if back else '.T'}"


def _subscript(number: int) -> str:
    return str(number).translate(_SUBSCRIPTS)


def _costs(program: Program, printer: _Printer) -> list[str]:
    joint = derive(program)
    douts = (True,) + (False,) * (len(program.fields) - 1)
    code = lower(joint, Wants(True, True, douts))
    flops = [_flops(code, routine) for routine in (BEFORE, LOOP, BACK, AFTER)]
    weights = sum(2 * r.left.size * r.right.size for r in code.reductions if r.right is not None)
    cheap = sum(element_cost(node, program) for node in program.nodes if node.rate >= INPUT)
    kept = code.frame + sum(program.fields)
    lines = [
        f"forward: {flops[0] + flops[1]:,} flops a row in products, {_share(flops[0], flops[0] + flops[1])} of them "
        f"before the loop, and {cheap:,.0f} multiplications' worth of element-wise work",
        f"backward: {flops[2]:,} flops a row in the loop, {flops[3]:,} for x and {weights:,} for parameters after it",
        f"kept for the backward pass: {kept:,} numbers a row, {4 * kept:,} bytes in float32 "
        f"(the state {sum(program.fields):,}, gates and the like {code.frame:,})",
    ]
    order = scanned(program)
    if not any(node.op == "state" for node in program.nodes):
        lines.append("no step waits for another: all are computed at once")
    elif order is not None:
        left = "no product is left in the loop" if not flops[1] else f"{flops[1]:,} flops a row in products stay in it"
        lines.append(f"linear in the state: a scan of {', '.join(printer.fields[f] for f in order)}; {left}")
    return lines


def _flops(code: Code, routine: int) -> int:
    steps = (step for step in code.routines[routine] if isinstance(step, Product))
    return sum(2 * step.size * place.size for step in steps for place in step.left)


def element_cost(node: Node, program: Program) -> float:
    """What a node computes element by element, in multiplications a row."""
    if node.op not in OPS or OPS[node.op].kind not in ("elements", "reduction"):
        return 0.0
    return OPS[node.op].cost * max([node.size, *(program.nodes[arg].size for arg in node.args)])


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "none"
