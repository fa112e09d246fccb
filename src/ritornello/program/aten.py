"""What ATen's calls mean in the words of programs: one entry a call. One that is not here makes a cell untraceable."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ritornello.program.ops import Term
from ritornello.program.program import CONSTANT, INPUT, PARAMETER, ROW, UNKNOWN, Value

if TYPE_CHECKING:
    from ritornello.program.trace import Recorder

Translation = Callable[..., Any]
TABLE: dict[str, Translation] = {}
MIXING = "which makes results depend on which sequences share a batch"
GROUPS = 16  # rows that a cell sees as (groups, size): how many groups are written out one by one
RUNS = GROUPS**2  # a row put into another order: how many runs of neighbours it may fall into
NUMBERS = ("_local_scalar_dense", "item", "is_nonzero", "equal")  # answers for Python
VIEWS = (
    "view",
    "_unsafe_view",
    "reshape",
    "unsqueeze",
    "squeeze",
    "clone",
    "contiguous",
    "view_as",
    "_reshape_alias",
)
CUTS = ("slice", "split", "split_with_sizes", "cat")
FOLDING = (*VIEWS, "bmm")  # what takes rows that are not the first axis
FACTORIES = ("eye", "arange", "linspace")  # tensors made of numbers alone, the same in every call


def translate(r: Recorder, func: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor], out: Any) -> None:
    """Writes down one call: binds its outputs to values."""
    name = func.name().removeprefix("aten::")
    base, _, overload = name.partition(".")
    if base.startswith("prim::"):  # what stand-ins for tensors ask about themselves
        return
    if base in ("detach", "lift_fresh", "alias") and r.knows(args[0]):
        value = r.value(args[0])
        if base == "detach" and (args[0].requires_grad or r.builder.is_differentiable(value)):
            r.stop(out)
        else:
            r.bind(out, value)
        return
    if base == "detach":  # of what autograd keeps for itself, such as a norm's mean
        return
    if base == "lift_fresh":  # torch.tensor(number)
        if out.numel() == 1:
            r.bind(out, r.builder.constant(out.item()))
        return
    in_place = base.endswith("_") and not base.endswith("__")
    rates = [r.builder.rate(r.value(t)) for t in tensors]
    if base in NUMBERS:
        mixing = f", {MIXING}" if rates and max(rates) > PARAMETER else ""
        raise r.untraceable(f"asking for a number that depends on data, as `if tensor` and .item() do{mixing}")
    if torch.Tag.nondeterministic_seeded in func.tags and rates and max(rates) == PARAMETER:
        raise r.untraceable(f"torch's {base} of a parameter: random numbers that all rows share")
    folded = [t for t, rate in zip(tensors, rates, strict=True) if rate > PARAMETER and t.shape[:1] != (r.rows,)]
    if folded and base not in FOLDING:
        raise r.untraceable(
            f"torch's {base} of a tensor of shape {tuple(folded[0].shape)}, whose rows are not its first axis"
        )
    if base in FACTORIES or (PARAMETER in rates and max(rates) == PARAMETER and not in_place):
        if not _parameter_rows(r, base, args, out):
            _parameters_alone(r, base, func, args, kwargs, out)
        return
    entry = TABLE.get(f"{base}.{overload}") or TABLE.get(base) or (TABLE.get(base[:-1]) if in_place else None)
    if entry is None:
        other = "; amax and amin are compiled" if base in ("max", "min") else ""
        raise r.untraceable(f"torch's {base}{other}")
    if base not in (*VIEWS, *CUTS) and any(t.shape[:1] == (r.rows,) and not t.numel() for t in tensors):
        raise r.untraceable(f"torch's {base} of a tensor without elements")
    value = entry(Call(r, out), *args, **kwargs)
    outputs = out if isinstance(out, (tuple, list)) else (out,)
    values = value if isinstance(value, (tuple, list)) else (value,)
    for tensor, each in zip(outputs, values, strict=False):
        if each is None:
            continue
        if in_place:
            r.overwrite(args[0], each)
        else:
            r.bind(tensor, each)


class Call:
    """One call being translated: its output's shape, and the values of its arguments as the output's elements.

    A tensor's first axis counts rows; what follows is flattened to the row's value.
    """

    def __init__(self, recorder: Recorder, out: Any) -> None:
        self.r = recorder
        self.b = recorder.builder
        self.out = out[0] if isinstance(out, (tuple, list)) else out

    def __call__(self, operand: Any, like: Tensor | None = None) -> Value:
        """An operand of an element-wise call, broadcast to the output's shape unless it is of size 1."""
        if not isinstance(operand, Tensor):
            return self.b.constant(float(operand))
        value = self.r.value(operand)
        target = self.out if like is None else like
        shape, wanted = list(operand.shape), list(target.shape[1:])
        if self.b.rate(value) == CONSTANT or (
            self.b.rate(value) > PARAMETER and shape[1:] in ([], [1] * len(shape[1:]))
        ):
            return value
        if self.b.rate(value) == PARAMETER:
            return self._spread(value, operand, wanted)
        if len(shape) != target.dim():
            raise self.r.untraceable(f"broadcasting rows of shape {tuple(shape)} to {tuple(target.shape)}")
        return self._broadcast(value, shape[1:], wanted)

    def _spread(self, value: Value, operand: Tensor, wanted: list[int]) -> Value:
        """A parameter over the elements of every row."""
        if operand.numel() == 1:
            return self.reshaped(value, (1,))
        shape = list(self.b.nodes[value].shape)
        while len(shape) > max(len(wanted), 1) and shape[0] == 1:
            shape.pop(0)
        if len(shape) > len(wanted):
            raise self.r.untraceable(
                f"a parameter of shape {tuple(operand.shape)} beside rows of shape {tuple(wanted)}"
            )
        if math.prod(shape) != math.prod(wanted):
            value = self.parameter_call("expand.default", value, tuple(wanted), shape=wanted)
        return self.reshaped(value, (math.prod(wanted),))

    def reshaped(self, value: Value, shape: tuple[int, ...]) -> Value:
        """A parameter in another shape."""
        if self.b.nodes[value].shape == shape or self.b.rate(value) < PARAMETER:
            return value
        return self.parameter_call("reshape.default", value, shape, shape=shape)

    def parameter_call(self, name: str, value: Value, *rest: Any, shape: Sequence[int]) -> Value:
        template = (("value", 0), *(_written(each) for each in rest))
        return self.b.leaf("call", (name, template, (), -1), shape, PARAMETER, (value,))

    def _broadcast(self, value: Value, shape: list[int], wanted: list[int]) -> Value:
        if shape == wanted or math.prod(shape) == math.prod(wanted):
            return value
        if math.prod(shape) == 1:
            return self.b.expand(value, math.prod(wanted))
        if shape[-1] == 1 and shape[:-1] == wanted[:-1] and math.prod(shape) <= GROUPS:
            return self.b.cat([self.b.expand(self.b.slice(value, k, 1), wanted[-1]) for k in range(math.prod(shape))])
        if shape[0] == 1 and shape[1:] == wanted[1:] and wanted[0] <= GROUPS:
            return self.b.cat([value] * wanted[0])
        if shape[-1] == 1 and shape[:-1] == wanted[:-1]:
            return self.b.apply("outer", value, self.ones(wanted[-1]))
        if shape[0] == 1 and shape[1:] == wanted[1:]:
            return self.b.apply("outer", self.ones(wanted[0]), value)
        raise self.r.untraceable(f"broadcasting rows of shape {tuple(shape)} to {tuple(wanted)}")

    def ones(self, size: int) -> Value:
        return self.b.expand(self.b.constant(1), size)

    def groups(self, operand: Tensor, dims: Any = -1) -> tuple[list[Value], int]:
        """The parts of a row that a reduction over its last axes leaves apart, and the size of each."""
        value = self.r.value(operand)
        axes = {axis % operand.dim() for axis in ([dims] if isinstance(dims, int) else dims or range(operand.dim()))}
        kept = operand.dim() - len(axes)
        if 0 in axes:
            raise self.r.untraceable(f"a reduction over rows, {MIXING}")
        if axes != set(range(kept, operand.dim())):
            raise self.r.untraceable("a reduction over other axes than the row's last")
        count, size = math.prod(operand.shape[1:kept]), math.prod(operand.shape[kept:])
        if count > GROUPS:
            raise self.r.untraceable(f"a reduction over {count} groups in a row (at most {GROUPS})")
        if self.b.size(value) == 1 and count * size > 1:
            value = self.b.expand(value, count * size)
        return [self.b.slice(value, k * size, size) for k in range(count)], size


def _written(value: Any) -> Any:
    """A call's argument in a form that JSON keeps."""
    if isinstance(value, (list, tuple)):
        return ("list", *(_written(each) for each in value))
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return ("torch", str(value).removeprefix("torch."))
    if isinstance(value, torch.device):
        return ("none",)
    return ("is", value)


def read(value: Any, tensors: Sequence[Tensor]) -> Any:
    """The way back, with the tensors in their places."""
    kind, *rest = value
    if kind == "value":
        return tensors[rest[0]]
    if kind == "list":
        return [read(each, tensors) for each in rest]
    if kind == "torch":
        return getattr(torch, rest[0])
    return None if kind == "none" else rest[0]


def _parameters_alone(r: Recorder, base: str, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """A call on parameters: kept as it is, for it runs once, in torch, before the loop."""
    first = r.value(args[0]) if isinstance(args[0], Tensor) else None
    if base in ("t", "transpose") and first is not None and args[0].dim() == 2:
        r.bind(out, r.builder.leaf("transpose", (), tuple(out.shape), PARAMETER, (first,)))
        return
    if first is not None and args[0].dim() == 2 and base in ("slice", "split", "split_with_sizes", "unsafe_split"):
        for piece in out if isinstance(out, (tuple, list)) else (out,):
            row, column = divmod(piece.storage_offset() - args[0].storage_offset(), args[0].stride(0) or 1)
            plain = args[0].stride(1) == 1 and args[0].stride(0) >= args[0].shape[1] > 1
            if not plain or piece.stride() != args[0].stride():
                break
            r.bind(piece, r.builder.leaf("window", (row, column), tuple(piece.shape), PARAMETER, (first,)))
        else:
            return
    values: list[Value] = []

    def template(value: Any) -> Any:
        if isinstance(value, Tensor):
            values.append(r.value(value))
            if r.builder.rate(values[-1]) == PARAMETER and r.builder.nodes[values[-1]].shape != tuple(value.shape):
                raise r.untraceable("computing with one parameter for every row")
            return ("value", len(values) - 1)
        if isinstance(value, (list, tuple)):
            return ("list", *(template(each) for each in value))
        return _written(value)

    name = func.name().removeprefix("aten::")
    name = name if "." in name else f"{name}.default"
    positional = tuple(template(each) for each in args)
    named = tuple((key, template(each)) for key, each in kwargs.items())
    outputs = out if isinstance(out, (tuple, list)) else (out,)
    for number, tensor in enumerate(outputs):
        index = number if isinstance(out, (tuple, list)) else -1
        value = r.builder.leaf("call", (name, positional, named, index), tuple(tensor.shape), PARAMETER, values)
        r.bind(tensor, value)


def _parameter_rows(r: Recorder, base: str, args: Any, out: Any) -> bool:
    """Whether a call gives every row the same: a parameter spread over the rows, or rows of one number times it."""
    rows = isinstance(out, Tensor) and out.dim() == 2 and out.shape[0] == r.rows and isinstance(args[0], Tensor)
    if rows and base in ("expand", "repeat") and args[0].numel() == out.shape[1] == args[0].shape[-1]:
        r.bind(out, Call(r, out).reshaped(r.value(args[0]), (out.shape[1],)))
        return True
    if rows and base == "mm" and args[0].shape[0] == r.rows and r.builder.rate(r.value(args[0])) == CONSTANT:
        c, matrix = Call(r, out), r.value(args[1])
        columns = c.parameter_call("sum.dim_IntList", matrix, [0], shape=out.shape[1:])
        r.bind(out, r.builder.mul(r.value(args[0]), columns))
        return True
    return False


def _entry(*names: str) -> Callable[[Translation], Translation]:
    def register(translation: Translation) -> Translation:
        for name in names:
            assert name not in TABLE, name
            TABLE[name] = translation
        return translation

    return register


for _same in ("neg", "abs", "sigmoid", "tanh", "relu", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "reciprocal"):
    TABLE[_same] = lambda c, x, _op=_same: c.b.apply(_op, c(x))
for _same in ("erf", "sin", "cos", "sgn", "sign"):
    TABLE[_same] = lambda c, x, _op=_same: c.b.apply("sign" if _op == "sgn" else _op, c(x))
for _same in ("div", "minimum", "maximum", "gt", "ge", "lt", "le", "eq", "ne"):
    TABLE[_same] = lambda c, x, y, _op=_same: c.b.apply(_op, c(x), c(y))


@_entry("mul")
def _mul(c: Call, x: Any, y: Any) -> Value:
    if isinstance(x, Tensor) and isinstance(y, Tensor) and x.dim() == y.dim() == 3 and _is_outer(x, y):
        return c.b.apply("outer", _whole(c, x), _whole(c, y))
    return c.b.mul(c(x), c(y))


def _is_outer(x: Tensor, y: Tensor) -> bool:
    return x.shape[2] == 1 and y.shape[1] == 1 and x.shape[1] > 1 and y.shape[2] > 1


@_entry("add")
def _add(c: Call, x: Any, y: Any, alpha: float = 1) -> Value:
    return c.b.add(c(x), c.b.mul(c.b.constant(alpha), c(y)))


@_entry("sub")
def _sub(c: Call, x: Any, y: Any, alpha: float = 1) -> Value:
    return c.b.sub(c(x), c.b.mul(c.b.constant(alpha), c(y)))


@_entry("rsub")
def _rsub(c: Call, x: Any, y: Any, alpha: float = 1) -> Value:
    return c.b.sub(c(y), c.b.mul(c.b.constant(alpha), c(x)))


@_entry("addcmul")
def _addcmul(c: Call, x: Any, y: Any, z: Any, value: float = 1) -> Value:
    return c.b.add(c(x), c.b.mul(c.b.mul(c.b.constant(value), c(y)), c(z)))


@_entry("addcdiv")
def _addcdiv(c: Call, x: Any, y: Any, z: Any, value: float = 1) -> Value:
    return c.b.add(c(x), c.b.div(c.b.mul(c.b.constant(value), c(y)), c(z)))


@_entry("lerp")
def _lerp(c: Call, x: Any, y: Any, weight: Any) -> Value:
    return c.b.add(c(x), c.b.mul(c(weight), c.b.sub(c(y), c(x))))


@_entry("pow.Tensor_Scalar")
def _pow(c: Call, x: Any, exponent: float) -> Value:
    return c.b.pow(c(x), c.b.constant(exponent))


@_entry("silu")
def _silu(c: Call, x: Any) -> Value:
    return c.b.mul(c(x), c.b.sigmoid(c(x)))


@_entry("mish")
def _mish(c: Call, x: Any) -> Value:
    return c.b.mul(c(x), c.b.tanh(c.b.softplus(c(x))))


@_entry("gelu")
def _gelu(c: Call, x: Any, approximate: str = "none") -> Value:
    b, v = c.b, c(x)
    if approximate == "none":
        inner = b.erf(b.mul(v, b.constant(math.sqrt(0.5))))
    else:
        cubic = b.mul(b.constant(0.044715), b.mul(b.mul(v, v), v))
        inner = b.tanh(b.mul(b.constant(math.sqrt(2 / math.pi)), b.add(v, cubic)))
    return b.mul(b.mul(b.constant(0.5), v), b.add(b.constant(1), inner))


@_entry("softplus")
def _softplus(c: Call, x: Any, beta: float = 1, threshold: float = 20) -> Value:
    b, scaled = c.b, c.b.mul(c(x), c.b.constant(beta))
    return b.where(b.gt(scaled, b.constant(threshold)), c(x), b.div(b.softplus(scaled), b.constant(beta)))


@_entry("log_sigmoid_forward")
def _log_sigmoid(c: Call, x: Any) -> list[Value | None]:
    return [c.b.neg(c.b.softplus(c.b.neg(c(x)))), None]


@_entry("elu")
def _elu(c: Call, x: Any, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Value:
    b, v = c.b, c(x)
    positive = b.gt(v, b.constant(0))
    below = b.where(positive, b.constant(0), v)  # so that no exponential overflows where it is not wanted
    curve = b.mul(b.constant(alpha * scale), b.expm1(b.mul(below, b.constant(input_scale))))
    return b.where(positive, b.mul(v, b.constant(scale)), curve)


@_entry("celu")
def _celu(c: Call, x: Any, alpha: float = 1) -> Value:
    return _elu(c, x, alpha, 1, 1 / alpha)


@_entry("threshold")
def _threshold(c: Call, x: Any, threshold: float, value: float) -> Value:
    return c.b.where(c.b.le(c(x), c.b.constant(threshold)), c.b.constant(value), c(x))


@_entry("glu")
def _glu(c: Call, x: Tensor, dim: int = -1) -> Value:
    first, second = _split(c, x, c.out.shape[dim], dim)
    return c.b.mul(first, c.b.sigmoid(second))


@_entry("leaky_relu")
def _leaky_relu(c: Call, x: Any, slope: float = 0.01) -> Value:
    return c.b.where(c.b.gt(c(x), c.b.constant(0)), c(x), c.b.mul(c(x), c.b.constant(slope)))


@_entry("hardtanh")
def _hardtanh(c: Call, x: Any, lower: float = -1, upper: float = 1) -> Value:
    """At the bounds the gradient is 0, unlike clamp's."""
    return _between(c, c(x), lower, upper, c.b.le, c.b.ge)


@_entry("clamp")
def _clamp(c: Call, x: Any, lower: Any = None, upper: Any = None, min: Any = None, max: Any = None) -> Value:
    lower, upper = lower if lower is not None else min, upper if upper is not None else max
    return _between(c, c(x), lower, upper, c.b.lt, c.b.gt)


@_entry("clamp_min")
def _clamp_min(c: Call, x: Any, lower: Any) -> Value:
    return _between(c, c(x), lower, None, c.b.lt, c.b.gt)


@_entry("clamp_max")
def _clamp_max(c: Call, x: Any, upper: Any) -> Value:
    return _between(c, c(x), None, upper, c.b.lt, c.b.gt)


def _between(c: Call, x: Value, lower: Any, upper: Any, below: Any, above: Any) -> Value:
    value = x
    for bound, beyond in ((lower, below), (upper, above)):  # where they cross it is the upper bound that holds
        if bound is None:
            continue
        at = c(bound)
        if isinstance(bound, Tensor) or math.isnan(bound):  # a bound that is NaN gives NaN
            value = c.b.where(c.b.eq(at, at), value, at)
        value = c.b.where(beyond(value, at), at, value)
    return value


@_entry("hardsigmoid")
def _hardsigmoid(c: Call, x: Any) -> Value:
    return _hard_line(c, c(x))


def _hard_line(c: Call, x: Value) -> Value:
    """(x + 3) / 6 between 0 and 1; at the bounds the gradient is 0."""
    line = c.b.div(c.b.add(x, c.b.constant(3)), c.b.constant(6))
    return _between(c, line, 0.0, 1.0, c.b.le, c.b.ge)


@_entry("hardswish")
def _hardswish(c: Call, x: Any) -> Value:
    return c.b.mul(c(x), _hard_line(c, c(x)))


@_entry("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar")
def _where(c: Call, condition: Tensor, x: Any, y: Any) -> Value:
    return c.b.where(c(condition), c(x), c(y))


@_entry("masked_fill")
def _masked_fill(c: Call, x: Any, mask: Tensor, value: Any) -> Value:
    return c.b.where(c(mask), c(value), c(x))


@_entry("logical_not", "bitwise_not")
def _not(c: Call, x: Any) -> Value:
    return c.b.eq(c(x), c.b.constant(0))


@_entry("logical_and", "bitwise_and")
def _and(c: Call, x: Any, y: Any) -> Value:
    return c.b.mul(c.b.ne(c(x), c.b.constant(0)), c.b.ne(c(y), c.b.constant(0)))


@_entry("logical_or", "bitwise_or")
def _or(c: Call, x: Any, y: Any) -> Value:
    return c.b.maximum(c.b.ne(c(x), c.b.constant(0)), c.b.ne(c(y), c.b.constant(0)))


# Products with a parameter.
def _product(c: Call, start: Value | None, v: Tensor, weight: Tensor) -> Value:
    value, matrix = c.r.value(v), c.r.value(weight)
    if c.b.rate(matrix) != PARAMETER or c.b.rate(value) < INPUT or v.dim() != 2:
        raise c.r.untraceable("a matrix product other than of rows with a parameter")
    return product(c, start, _whole(c, v), matrix, c.b.nodes[matrix].shape[1])


def product(c: Call, start: Value | None, value: Value, matrix: Value, size: int) -> Value:
    """value times the (in, out) matrix, read through its transpositions and windows."""
    term = Term(0, 0, True)
    while (node := c.b.nodes[matrix]).op in ("transpose", "window"):
        if node.op == "transpose":
            term = Term(term.column, term.row, not term.back)
        else:
            term = Term(term.row + node.attributes[0], term.column + node.attributes[1], term.back)
        matrix = node.args[0]
    if c.b.size(value) == 1 and len(c.b.nodes[value].shape) == 0:
        raise c.r.untraceable("a product with a constant")
    return c.b.affine(start, [(value, matrix, term)], size)


@_entry("mm")
def _mm(c: Call, v: Tensor, weight: Tensor) -> Value:
    return _product(c, None, v, weight)


@_entry("addmm")
def _addmm(c: Call, start: Tensor, v: Tensor, weight: Tensor, beta: float = 1, alpha: float = 1) -> Value:
    if alpha != 1 or beta != 1:
        made = c.b.mul(c.b.constant(alpha), _product(c, None, v, weight))
        return c.b.add(c.b.mul(c.b.constant(beta), c(start)), made)
    return c.b.add(_product(c, None, v, weight), c(start))


@_entry("_trilinear")
def _trilinear(c: Call, x: Tensor, weight: Tensor, y: Tensor, *layout: Any) -> Value:
    """F.bilinear: Σ_ij x_i W_kij y_j is W, seen as a matrix (k, ij), times all products x_i y_j."""
    if [list(each) for each in layout[:4]] != [[1, 3], [0], [1, 2], [2, 3]]:
        raise c.r.untraceable("torch's _trilinear in another layout than bilinear's")
    out, left, right = weight.shape
    matrix = c.reshaped(c.r.value(weight), (out, left * right))
    pairs = c.b.apply("outer", _whole(c, x), _whole(c, y))
    return c.b.affine(None, [(pairs, matrix, Term(0, 0, False))], out)


@_entry("bmm")
def _bmm(c: Call, x: Tensor, y: Tensor) -> Value:
    """One row times another: an outer or an inner product."""
    left, right = _whole(c, x), _whole(c, y)
    if x.shape[:2] == (1, c.r.rows) and c.b.rate(right) == PARAMETER:  # rows times a parameter, as einsum writes it
        return product(c, None, left, c.reshaped(right, tuple(y.shape[1:])), y.shape[2])
    if min(c.b.rate(left), c.b.rate(right)) < INPUT:
        raise c.r.untraceable("a batched product with a parameter")
    if x.shape[2] == 1:
        return c.b.apply("outer", left, right)
    if y.shape[2] == 1:
        return c.b.apply("outer_right", left, right)
    if x.shape[1] == 1:
        return c.b.apply("outer_left", right, left)
    raise c.r.untraceable("a product of two matrices that depend on the row")


# Layout.
def _row_axis(c: Call, x: Tensor, dim: int) -> int:
    axis = dim % x.dim()
    if axis == 0:
        raise c.r.untraceable("taking rows apart, or joining them")
    return axis


def _cut(c: Call, x: Tensor, axis: int, start: int, size: int) -> Value:
    value = c.r.value(x)
    if c.b.size(value) == 1 and math.prod(x.shape[1:]) > 1:
        return value
    inner = math.prod(x.shape[axis + 1 :])
    outer = math.prod(x.shape[1:axis])
    if outer > GROUPS:
        raise c.r.untraceable(f"slicing inside {outer} groups of a row (at most {GROUPS})")
    step = x.shape[axis] * inner
    return c.b.cat([c.b.slice(value, k * step + start * inner, size * inner) for k in range(outer)])


@_entry("split", "unsafe_split")
def _split(c: Call, x: Tensor, size: int, dim: int = 0) -> list[Value]:
    axis = _row_axis(c, x, dim)
    whole = x.shape[axis]
    return [_cut(c, x, axis, at, min(size, whole - at)) for at in range(0, whole, size)]


@_entry("split_with_sizes", "unsafe_split_with_sizes")
def _split_sizes(c: Call, x: Tensor, sizes: Sequence[int], dim: int = 0) -> list[Value]:
    axis = _row_axis(c, x, dim)
    return [_cut(c, x, axis, sum(sizes[:k]), size) for k, size in enumerate(sizes)]


@_entry("slice")
def _slice(c: Call, x: Tensor, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Value:
    axis, length = dim % x.dim(), x.shape[dim]
    first, stop, step = slice(start, end, step).indices(length)
    if (first, stop, step) == (0, length, 1):
        return c.r.value(x)
    _row_axis(c, x, dim)
    if step != 1:
        raise c.r.untraceable("a slice with a step")
    return _cut(c, x, axis, first, max(0, stop - first))


@_entry("select")
def _select(c: Call, x: Tensor, dim: int, index: int) -> Value:
    axis = _row_axis(c, x, dim)
    return _cut(c, x, axis, index % x.shape[axis], 1)


@_entry("unbind")
def _unbind(c: Call, x: Tensor, dim: int = 0) -> list[Value]:
    axis = _row_axis(c, x, dim)
    return [_cut(c, x, axis, k, 1) for k in range(x.shape[axis])]


@_entry("cat")
def _cat(c: Call, tensors: Sequence[Tensor], dim: int = 0) -> Value:
    axis = _row_axis(c, tensors[0], dim)
    if axis != c.out.dim() - 1 and math.prod(c.out.shape[1:axis]) != 1:
        raise c.r.untraceable("joining along an axis inside the row")
    inner = math.prod(c.out.shape[axis + 1 :])
    groups = math.prod(c.out.shape[1:axis])
    if groups > GROUPS:
        raise c.r.untraceable(f"joining inside {groups} groups of a row (at most {GROUPS})")
    wholes = [(_whole(c, t), t.shape[axis] * inner) for t in tensors]
    return c.b.cat([c.b.slice(v, k * size, size) for k in range(groups) for v, size in wholes])


@_entry("constant_pad_nd")
def _pad(c: Call, x: Tensor, pad: Sequence[int], value: float = 0) -> Value:
    if len(pad) != 2 or x.dim() != 2 or min(pad) < 0:
        raise c.r.untraceable("padding other than the row, at its ends")
    sides = [c.b.expand(c.b.constant(float(value)), size) if size else None for size in pad]
    return c.b.cat([part for part in (sides[0], _whole(c, x), sides[1]) if part is not None])


def _whole(c: Call, x: Tensor) -> Value:
    """The tensor's value with all its elements, though they be the same."""
    value, size = c.r.value(x), math.prod(x.shape[1:])
    alone = c.b.size(value) == 1 and c.b.rate(value) != PARAMETER
    return c.b.expand(value, size) if alone else value


@_entry("stack")
def _stack(c: Call, tensors: Sequence[Tensor], dim: int = 0) -> Value:
    if dim % c.out.dim() != 1:
        raise c.r.untraceable("stacking along another axis than the row's first")
    return c.b.cat([_whole(c, t) for t in tensors])


@_entry(*VIEWS)
def _same_row(c: Call, x: Tensor, *rest: Any, **_: Any) -> Value:
    if not (_keeps_rows(c, c.out) and (not x.shape or _keeps_rows(c, x))):
        if c.b.rate(c.r.value(x)) < INPUT:
            return c.r.value(x)
        raise c.r.untraceable("a shape that does not keep the rows apart")
    return c.r.value(x)


def _keeps_rows(c: Call, x: Tensor) -> bool:
    """Whether the rows are the first axis, or stand behind one of size 1."""
    return x.shape[:1] == (c.r.rows,) or x.shape[:2] == (1, c.r.rows)


@_entry("permute")
def _permute(c: Call, x: Tensor, dims: Sequence[int]) -> Value:
    if dims[0] % x.dim() != 0:
        raise c.r.untraceable("moving the rows to another axis")
    return _in_order(c, x, lambda numbers: numbers.permute(*dims))


@_entry("transpose")
def _transpose(c: Call, x: Tensor, one: int, other: int) -> Value:
    _row_axis(c, x, one), _row_axis(c, x, other)
    return _in_order(c, x, lambda numbers: numbers.transpose(one, other))


@_entry("flip")
def _flip(c: Call, x: Tensor, axes: Sequence[int]) -> Value:
    for axis in axes:
        _row_axis(c, x, axis)
    return _in_order(c, x, lambda numbers: numbers.flip(*axes))


@_entry("roll")
def _roll(c: Call, x: Tensor, shifts: Sequence[int], axes: Sequence[int] = ()) -> Value:
    for axis in axes or (0,):  # none: over everything
        _row_axis(c, x, axis)
    return _in_order(c, x, lambda numbers: torch.roll(numbers, tuple(shifts), tuple(axes)))


def _in_order(c: Call, x: Tensor, move: Callable[[Tensor], Tensor]) -> Value:
    """The row's elements in the order that `move` gives their numbers: a slice for each run of neighbours."""
    value, size = c.r.value(x), math.prod(x.shape[1:])
    if c.b.size(value) == 1:
        return value
    order = move(torch.arange(size).view(1, *x.shape[1:])).flatten().tolist()
    starts = [at for at in range(len(order)) if at == 0 or order[at] != order[at - 1] + 1]
    if len(starts) > RUNS:
        raise c.r.untraceable(f"another order of a row in {len(starts)} runs (at most {RUNS})")
    stops = [*starts[1:], len(order)]
    return c.b.cat([c.b.slice(value, order[at], stop - at) for at, stop in zip(starts, stops, strict=True)])


@_entry("expand")
def _expand(c: Call, x: Tensor, *rest: Any, **_: Any) -> Value:
    value = c.r.value(x)
    if c.b.rate(value) < INPUT:
        return value
    if x.dim() != c.out.dim():
        raise c.r.untraceable("expanding by a new first axis")
    return c(x)


@_entry("_to_copy", "to")
def _to(c: Call, x: Tensor, dtype: Any = None, **_: Any) -> Value:
    if x.dtype == torch.bool or c.out.dtype == x.dtype:
        return c.r.value(x)
    if c.out.dtype == torch.bool:
        return c.b.ne(c.r.value(x), c.b.constant(0))
    raise c.r.untraceable(f"a change of dtype from {x.dtype} to {c.out.dtype}")


# Over the row.
def _each(c: Call, x: Tensor, dims: Any, make: Callable[[Value, int], Value]) -> Value:
    parts, size = c.groups(x, dims)
    return c.b.cat([make(part, size) for part in parts])


@_entry("sum")
def _sum(c: Call, x: Tensor, dims: Any = None, keepdim: bool = False, **_: Any) -> Value:
    axes = {axis % x.dim() for axis in ([dims] if isinstance(dims, int) else dims or ())}
    if x.dim() == 3 and axes == {1}:
        return c.b.apply("outer_left", _whole(c, x), c.ones(x.shape[1]))
    if x.dim() == 3 and axes == {2} and x.shape[1] > GROUPS:
        return c.b.apply("outer_right", _whole(c, x), c.ones(x.shape[2]))
    return _each(c, x, dims, lambda part, size: c.b.sum(part))


@_entry("mean")
def _mean(c: Call, x: Tensor, dims: Any = None, keepdim: bool = False, **_: Any) -> Value:
    return c.b.mul(_sum(c, x, dims), c.b.constant(c.out.numel() / x.numel()))


def _mean_of(c: Call, part: Value, size: int) -> Value:
    return c.b.mul(c.b.sum(part), c.b.constant(1 / size))


@_entry("cumsum")
def _cumsum(c: Call, x: Tensor, dim: int, dtype: Any = None) -> Value:
    """The row times a triangle of ones."""
    if x.dim() != 2 or _row_axis(c, x, dim) != 1:
        raise c.r.untraceable("a cumulative sum inside groups of a row")
    size = x.shape[1]
    ones = c.b.leaf("call", ("ones.default", (_written([size, size]),), (), -1), (size, size), PARAMETER)
    return product(c, None, _whole(c, x), c.parameter_call("triu.default", ones, shape=(size, size)), size)


@_entry("amax")
def _amax(c: Call, x: Tensor, dims: Any = (), keepdim: bool = False) -> Value:
    return _each(c, x, dims, lambda part, size: c.b.max(part))


@_entry("amin")
def _amin(c: Call, x: Tensor, dims: Any = (), keepdim: bool = False) -> Value:
    return _each(c, x, dims, lambda part, size: c.b.neg(c.b.max(c.b.neg(part))))


def _variance(c: Call, part: Value, size: int, correction: float) -> Value:
    centred = c.b.sub(part, _mean_of(c, part, size))
    return c.b.mul(
        c.b.sum(c.b.mul(centred, centred)),
        c.b.constant(1 / max(size - correction, 0) if size > correction else math.nan),
    )


@_entry("var.correction")
def _var(c: Call, x: Tensor, dims: Any = None, correction: Any = 1, keepdim: bool = False) -> Value:
    by = 1.0 if correction is None else float(correction)
    return _each(c, x, dims, lambda part, size: _variance(c, part, size, by))


@_entry("var_mean.correction")
def _var_mean(c: Call, x: Tensor, dims: Any = None, correction: Any = 1, keepdim: bool = False) -> list[Value]:
    return [_var(c, x, dims, correction), _mean(c, x, dims)]


@_entry("std.correction")
def _std(c: Call, x: Tensor, dims: Any = None, correction: Any = 1, keepdim: bool = False) -> Value:
    by = 1.0 if correction is None else float(correction)
    return _each(c, x, dims, lambda part, size: _root(c, _variance(c, part, size, by)))


def _root(c: Call, square: Value) -> Value:
    """The square root of a number that is not negative; its gradient at 0 is 0, as torch has it for norms."""
    zero = c.b.eq(square, c.b.constant(0))
    return c.b.where(zero, c.b.constant(0), c.b.sqrt(c.b.where(zero, c.b.constant(1), square)))


@_entry("linalg_vector_norm")
def _norm(c: Call, x: Tensor, order: float = 2, dims: Any = None, keepdim: bool = False, **_: Any) -> Value:
    if order == 2:
        return _each(c, x, dims, lambda part, size: _root(c, c.b.sum(c.b.mul(part, part))))
    if order == 1:
        return _each(c, x, dims, lambda part, size: c.b.sum(c.b.abs(part)))
    raise c.r.untraceable(f"a norm of order {order}")


def _softmax_of(c: Call, part: Value) -> Value:
    powers = c.b.exp(c.b.sub(part, c.b.max(part)))
    return c.b.div(powers, c.b.sum(powers))


@_entry("_softmax")
def _softmax(c: Call, x: Tensor, dim: int, half_to_float: bool = False) -> Value:
    return _each(c, x, dim, lambda part, size: _softmax_of(c, part))


@_entry("_log_softmax")
def _log_softmax(c: Call, x: Tensor, dim: int, half_to_float: bool = False) -> Value:
    return _each(c, x, dim, lambda part, size: c.b.sub(part, _log_sum_exp(c, part)))


@_entry("logsumexp")
def _logsumexp(c: Call, x: Tensor, dims: Any, keepdim: bool = False) -> Value:
    return _each(c, x, dims, lambda part, size: _log_sum_exp(c, part, c.b.constant(0)))


def _log_sum_exp(c: Call, part: Value, beside_infinity: Value | None = None) -> Value:
    """log Σ exp, with the largest taken out; or, where that is infinite, another number."""
    largest = c.b.max(part)
    if beside_infinity is not None:
        infinite = c.b.eq(c.b.abs(largest), c.b.constant(math.inf))
        largest = c.b.where(infinite, beside_infinity, largest)
    return c.b.add(largest, c.b.log(c.b.sum(c.b.exp(c.b.sub(part, largest)))))


@_entry("native_layer_norm")
def _layer_norm(c: Call, x: Tensor, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> list[Value | None]:
    axes = list(range(x.dim() - len(shape), x.dim()))
    value = _each(c, x, axes, lambda part, size: _normalised(c, part, size, eps))
    if weight is not None:
        value = c.b.mul(value, c(weight))
    if bias is not None:
        value = c.b.add(value, c(bias))
    return [value, None, None]


def _normalised(c: Call, part: Value, size: int, eps: float) -> Value:
    centred = c.b.sub(part, _mean_of(c, part, size))
    variance = c.b.mul(c.b.sum(c.b.mul(centred, centred)), c.b.constant(1 / size))
    return c.b.mul(centred, c.b.rsqrt(c.b.add(variance, c.b.constant(eps))))


@_entry("native_group_norm")
def _group_norm(
    c: Call, x: Tensor, weight: Any, bias: Any, rows: int, channels: int, inner: int, groups: int, eps: float
) -> list[Value | None]:
    if groups > GROUPS or inner != 1:
        raise c.r.untraceable(f"group norm over {groups} groups (at most {GROUPS}, one element a channel)")
    value, size = _whole(c, x), channels // groups
    parts = [_normalised(c, c.b.slice(value, k * size, size), size, eps) for k in range(groups)]
    made = c.b.cat(parts)
    if weight is not None:
        made = c.b.mul(made, c(weight))
    if bias is not None:
        made = c.b.add(made, c(bias))
    return [made, None, None]


# Constants and chance.
def _filled(number: float) -> Translation:
    return lambda c, *_, **__: c.b.constant(number)


for _zeros in (
    "zeros_like",
    "new_zeros",
    "zeros",
    "zero",
    "empty",
    "empty_like",
    "new_empty",
):  # empty: until it is filled
    TABLE[_zeros] = _filled(0)
for _ones in ("ones_like", "new_ones", "ones"):
    TABLE[_ones] = _filled(1)


@_entry("full", "full_like", "new_full")
def _full(c: Call, like: Any, *rest: Any, **_: Any) -> Value:
    return c.b.constant(float(rest[-1]))


@_entry("fill")
def _fill(c: Call, x: Tensor, number: Any) -> Value:
    return c(number)


@_entry("copy")
def _copy(c: Call, x: Tensor, source: Tensor, *_: Any) -> Value:
    return c(source, x)


@_entry("scalar_tensor")
def _scalar(c: Call, number: float, **_: Any) -> Value:
    return c.b.constant(float(number))


def _uniform(c: Call, x: Tensor, like: Any) -> Value:
    """Numbers in [0, 1), drawn anew at every row; the stream tells apart the draws of one step.

    There are as many as `like` has elements; UNKNOWN how many over several predecessors, where it is no tensor.
    """
    if x.dim() == 0 or x.shape[0] != c.r.rows:
        raise c.r.untraceable("drawing at random for all rows at once")
    c.r.streams += 1
    drawn_for = c.r.drawn_for.get(id(like), ROW) if isinstance(like, Tensor) else UNKNOWN
    return c.b.leaf("uniform", (c.r.streams - 1, drawn_for), (math.prod(x.shape[1:]),), INPUT)


@_entry("rand", "rand_like")
def _rand(c: Call, like: Any, *_: Any, **__: Any) -> Value:
    return _uniform(c, c.out, like)


@_entry("bernoulli")
def _bernoulli(c: Call, x: Tensor, generator: Any = None) -> Value:
    return c.b.lt(_uniform(c, x, x), c(x))


@_entry("bernoulli.p", "bernoulli_.float")
def _bernoulli_of(c: Call, x: Tensor, p: float = 0.5, generator: Any = None) -> Value:
    return c.b.lt(_uniform(c, x, x), c.b.constant(p))


@_entry("native_dropout")
def _dropout(c: Call, x: Tensor, p: float, train: bool | None) -> list[Value]:
    if not train or p == 0:
        return [c(x), c.b.constant(1)]
    kept = c.b.lt(_uniform(c, x, x), c.b.constant(1 - p))
    return [c.b.mul(c.b.mul(c(x), kept), c.b.constant(1 / (1 - p) if p < 1 else 0)), kept]
