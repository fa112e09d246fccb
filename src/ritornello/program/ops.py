"""The op table: every word that a program may use, with its meaning in torch and its derivative in other words.

One row an op. The C++ machine's table (src/csrc/ops.def) lists the element-wise ones again; a test compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ritornello.program.program import Builder

    Value = int
    Derivative = Callable[[Builder, Value, Sequence[Value], Value], list[Value | None]]

ELEMENTS, REDUCTION, LAYOUT, PRODUCT, LEAF = "elements", "reduction", "layout", "product", "leaf"


@dataclass(frozen=True)
class Op:
    """A word of the program language.

    Attributes:
        name: as programs print it.
        kind: ELEMENTS (one result an element, size-1 arguments broadcast), REDUCTION (over the row, to size 1), LAYOUT
            (moves, computes nothing), PRODUCT (with a parameter matrix, or of two rows), LEAF (no arguments).
        meaning: the same in torch, on tensors (rows, size); attributes follow the arguments.
        derivative: (builder, gradient, arguments, result) to the arguments' gradients; None for an argument without.
        cost: of one element, in multiplications; what save-or-recompute weighs.
    """

    name: str
    kind: str
    meaning: Callable[..., Any]
    derivative: Derivative | None = None
    cost: float = 1.0


OPS: dict[str, Op] = {}


def _op(name: str, kind: str, meaning: Callable[..., Any], derivative: Any = None, cost: float = 1.0) -> None:
    assert name not in OPS, f"op {name!r} is listed twice"
    OPS[name] = Op(name, kind, meaning, derivative, cost)


def _elements(name: str, meaning: Callable[..., Any], derivative: Any = None, cost: float = 1.0) -> None:
    _op(name, ELEMENTS, meaning, derivative, cost)


def _as(compare: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, b: compare(a, b).to(torch.promote_types(a.dtype, b.dtype))


def no_gradient(b: Builder, d: Value, args: Sequence[Value], y: Value) -> list[Value | None]:
    """The derivative of what does not depend smoothly on its arguments: nothing goes back to them."""
    return [None] * len(args)


# Element-wise, one argument. In derivatives: d the result's gradient, (x, ...) the arguments, y the result.
_elements("neg", torch.neg, lambda b, d, x, y: [b.neg(d)])
_elements("abs", torch.abs, lambda b, d, x, y: [b.mul(d, b.sign(x[0]))])
_elements("sign", torch.sign, no_gradient)
_elements("sigmoid", torch.sigmoid, lambda b, d, x, y: [b.sigmoid_back(d, y)], cost=12)
_elements("tanh", torch.tanh, lambda b, d, x, y: [b.tanh_back(d, y)], cost=12)
_elements("relu", torch.relu, lambda b, d, x, y: [b.where(b.gt(y, b.constant(0)), d, b.constant(0))])
_elements("exp", torch.exp, lambda b, d, x, y: [b.mul(d, y)], cost=10)
_elements("expm1", torch.expm1, lambda b, d, x, y: [b.mul_add(d, y, d)], cost=12)
_elements("log", torch.log, lambda b, d, x, y: [b.div(d, x[0])], cost=12)
_elements("log1p", torch.log1p, lambda b, d, x, y: [b.div(d, b.add(x[0], b.constant(1)))], cost=14)
_elements("sqrt", torch.sqrt, lambda b, d, x, y: [b.div(d, b.add(y, y))], cost=4)
_elements("rsqrt", torch.rsqrt, lambda b, d, x, y: [b.mul(b.constant(-0.5), b.mul(d, b.mul(y, b.mul(y, y))))], cost=6)
_elements("reciprocal", torch.reciprocal, lambda b, d, x, y: [b.neg(b.mul(d, b.mul(y, y)))], cost=4)
_elements("erf", torch.erf, lambda b, d, x, y: [_erf_back(b, d, x[0])], cost=16)
_elements("softplus", lambda x: torch.logaddexp(x, x.new_zeros(())), lambda b, d, x, y: [b.mul(d, b.sigmoid(x[0]))], 20)
_elements("sin", torch.sin, lambda b, d, x, y: [b.mul(d, b.cos(x[0]))], cost=20)
_elements("cos", torch.cos, lambda b, d, x, y: [b.neg(b.mul(d, b.sin(x[0])))], cost=20)


def _erf_back(b: Builder, d: Value, x: Value) -> Value:
    return b.mul(d, b.mul(b.constant(2 / math.sqrt(math.pi)), b.exp(b.neg(b.mul(x, x)))))


# Two arguments.
_elements("add", torch.add, lambda b, d, x, y: [d, d])
_elements("sub", torch.sub, lambda b, d, x, y: [d, b.neg(d)])
_elements("mul", torch.mul, lambda b, d, x, y: [b.mul(d, x[1]), b.mul(d, x[0])])
_elements("div", torch.div, lambda b, d, x, y: _div_back(b, d, x, y), cost=4)
_elements("minimum", torch.minimum, lambda b, d, x, y: _extremum_back(b, d, x, b.lt))
_elements("maximum", torch.maximum, lambda b, d, x, y: _extremum_back(b, d, x, b.gt))
_elements("pow", torch.pow, lambda b, d, x, y: _pow_back(b, d, x), cost=40)
for _name, _compare in (
    ("gt", torch.gt),
    ("ge", torch.ge),
    ("lt", torch.lt),
    ("le", torch.le),
    ("eq", torch.eq),
    ("ne", torch.ne),
):
    _elements(_name, _as(_compare), no_gradient)
_elements("sigmoid_back", lambda d, y: d * (y * (1 - y)))
_elements("tanh_back", lambda d, y: d * (1 - y * y))


def _div_back(b: Builder, d: Value, x: Sequence[Value], y: Value) -> list[Value | None]:
    over = b.div(d, x[1])
    return [over, b.neg(b.mul(over, y))]


def _extremum_back(b: Builder, d: Value, x: Sequence[Value], wins: Callable[[Value, Value], Value]) -> list[Any]:
    """Where both are equal each takes half, as in torch."""
    half = b.mul(b.eq(x[0], x[1]), b.constant(0.5))
    return [b.mul(d, b.add(wins(x[0], x[1]), half)), b.mul(d, b.add(wins(x[1], x[0]), half))]


def _pow_back(b: Builder, d: Value, x: Sequence[Value]) -> list[Value | None]:
    exponent = b.constant_of(x[1])
    assert exponent is not None, "the builder admits constant exponents only"
    if exponent == 0:
        return [None, None]
    return [b.mul(d, b.mul(b.constant(exponent), b.pow(x[0], b.constant(exponent - 1)))), None]


# Three arguments.
_elements(
    "where",
    lambda condition, a, b: torch.where(condition != 0, a, b),
    lambda b, d, x, y: [None, b.where(x[0], d, b.constant(0)), b.where(x[0], b.constant(0), d)],
)
_elements("mul_add", lambda a, b, c: a * b + c, lambda b, d, x, y: [b.mul(d, x[1]), b.mul(d, x[0]), d])

# Over the row.
_op("sum", REDUCTION, lambda x: x.sum(-1, keepdim=True), lambda b, d, x, y: [b.expand(d, b.size(x[0]))])
_op("max", REDUCTION, lambda x: x.amax(-1, keepdim=True), lambda b, d, x, y: [_max_back(b, d, x[0], y)])


def _max_back(b: Builder, d: Value, x: Value, y: Value) -> Value:
    """All elements that are the largest share its gradient evenly, as torch's amax does."""
    winners = b.eq(x, y)
    return b.mul(winners, b.div(d, b.sum(winners)))


# Layout. `total` sums over predecessors; unrolling a program to a number of predecessors removes it. `damped` is its
# first argument, whose gradient is multiplied by the second.
_op("slice", LAYOUT, lambda x, start, size: x[..., start : start + size])
_op("cat", LAYOUT, lambda *x: torch.cat(x, -1))
_op("expand", LAYOUT, lambda x, size: x.expand(*x.shape[:-1], size), lambda b, d, x, y: [b.sum(d)])
_op("total", LAYOUT, lambda x: x)
_op("damped", LAYOUT, lambda x, factor: damped(x, factor), lambda b, d, x, y: [b.mul(d, x[1]), None])


def damped(x: Tensor, factor: Tensor) -> Tensor:
    """x as it is; its gradient is multiplied by the factor on its way back."""
    return torch.where(x.isfinite(), torch.lerp(x.detach(), x, factor), x)  # between infinities it is no number


# Products. `affine` is start + Σᵢ vᵢ Wᵢᵀ over windows Wᵢ of parameters (see Term); `outer` all products of two rows.
_op("affine", PRODUCT, lambda *args: _affine(*args))
_op(
    "outer",
    PRODUCT,
    lambda a, b: (a.unsqueeze(-1) * b.unsqueeze(-2)).flatten(-2),
    lambda b, d, x, y: _outer_back(b, d, x),
)
_op(
    "outer_right",
    PRODUCT,
    lambda m, v: (m.unflatten(-1, (-1, v.shape[-1])) * v.unsqueeze(-2)).sum(-1),
    lambda b, d, x, y: [b.apply("outer", d, x[1]), b.apply("outer_left", x[0], d)],
)
_op(
    "outer_left",
    PRODUCT,
    lambda m, v: (m.unflatten(-1, (v.shape[-1], -1)) * v.unsqueeze(-1)).sum(-2),
    lambda b, d, x, y: [b.apply("outer", x[1], d), b.apply("outer_right", x[0], d)],
)


def _affine(*args: Any) -> Tensor:
    """Arguments: the start (or none), v₁, W₁, v₂, W₂, ..., then the size of the result and the terms."""
    *values, size, terms = args
    total: Any = values[0] if len(values) % 2 else 0
    for v, weight, term in zip(values[len(values) % 2 :: 2], values[len(values) % 2 + 1 :: 2], terms, strict=True):
        total = total + v @ term.window(weight, v.shape[-1], size)
    return total


class Term(NamedTuple):
    """How one product of an affine reads its parameter W: a window with its upper left corner at (row, column).

    v Wᵀ, with as many rows as the result has elements and as many columns as v; or, with `back`, v W.
    """

    row: int
    column: int
    back: bool

    def moved(self, rows: int, columns: int) -> Term:
        """The window that lies so much further on."""
        return Term(self.row + rows, self.column + columns, self.back)

    def window(self, weight: Tensor, length: int, size: int) -> Tensor:
        """The matrix (length, size) that v (..., length) is multiplied by."""
        if self.back:
            return weight[self.row : self.row + length, self.column : self.column + size]
        return weight[self.row : self.row + size, self.column : self.column + length].mT


def _outer_back(b: Builder, d: Value, x: Sequence[Value]) -> list[Value | None]:
    return [b.apply("outer_right", d, x[1]), b.apply("outer_left", d, x[0])]
