"""Programs: what is traced, simplified, differentiated and lowered means what the cell means.

Every stage has an oracle of its own: the cell itself, autograd, brute force over all choices, and an interpreter of the
machine's code in NumPy that shares nothing with it.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter, namedtuple
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from random_cells import FIELDS, RandomCell, Recipe, drawn_by_philox, recipes
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from ritornello.cells import GRU, LSTM, QRNN, Cell, Elman, meaning_of_total
from ritornello.errors import CellError
from ritornello.program import (
    Builder,
    Code,
    Program,
    Untraceable,
    Wants,
    derive,
    encode,
    interpret,
    lookup,
    lower,
    parameters,
    philox,
    simplify,
    trace,
    unroll,
)
from ritornello.program.aten import TABLE
from ritornello.program.code import (
    AFTER,
    BACK,
    BEFORE,
    CONST,
    DX,
    FRAME,
    LOOP,
    SCRATCH,
    TEMP,
    Instruction,
    Place,
    X,
)
from ritornello.program.linear import linearise
from ritornello.program.ops import ELEMENTS, LAYOUT, OPS, PRODUCT, REDUCTION, Term
from ritornello.program.passes import fold, fuse, merge, split
from ritornello.program.program import INPUT, PARAMETER, STATE, Node, products, prune, users
from ritornello.program.save import SAVE, choose_saved

F64 = torch.float64
LIKE = torch.zeros((), dtype=F64)


def program_of(cell: Cell) -> Program:
    return trace(cell, cell.input_size, cell.state_sizes, LIKE)


def plan_of(cell: Cell) -> Program:
    return simplify(unroll(program_of(cell), 1))


def batch_of(program: Program, rows: int = 3, seed: int = 0) -> tuple[Tensor, list[list[Tensor]]]:
    """x and the states of each slot, some of them equal."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(size: int) -> Tensor:
        return torch.randn(rows, size, generator=generator, dtype=F64).clamp(-2, 2).requires_grad_()

    return drawn(program.inputs), [[drawn(size) for size in program.fields] for _ in range(program.slots)]


def results(program: Program, cell: Cell, x: Tensor, states: Sequence[Sequence[Tensor]], seed: int = 7) -> list[Tensor]:
    """The new state that a program gives."""
    rows = torch.arange(len(x))
    found = interpret(
        program, x, states, lambda name: lookup(cell, name), lambda stream, size: philox(seed, rows, stream, size)
    )
    return [found[value].expand(len(x), -1) for value in program.results]


# Tracing: every ATen call of the table.


class Applied(Cell):
    """One function of x and h, with parameters at hand."""

    def __init__(self, function: Function, size: int = 4) -> None:
        super().__init__(size, size)
        self.function = function
        generator = torch.Generator().manual_seed(1)
        for name, shape in {"w": (size,), "v": (size,), "M": (size, size), "B": (3, size, size), "k": ()}.items():
            setattr(self, name, nn.Parameter(torch.randn(shape, generator=generator, dtype=F64)))

    def forward(self, x: Tensor, s: Any) -> Any:
        made = self.function(self, x, s.h)
        if made.dtype != x.dtype:
            made = made.to(x.dtype)
        made = made.flatten(1)
        wide = torch.cat([made, torch.zeros_like(x)], -1)[:, : self.hidden_size] if made.shape[1] != 1 else made
        return self.State(wide.expand(-1, self.hidden_size) if wide.shape[1] == 1 else wide)


aten = torch.ops.aten
Function = Callable[[Any, Tensor, Tensor], Any]


def of_one(module: Any, *names: str) -> dict[str, Function]:
    """torch's functions of one tensor."""
    return {name: (lambda c, x, h, _name=name: getattr(module, _name)(x)) for name in names}


def of_two(*names: str) -> dict[str, Function]:
    return {name: (lambda c, x, h, _name=name: getattr(torch, _name)(x, h)) for name in names}


def chosen_by(*names: str) -> dict[str, Function]:
    """Comparisons, by what they choose."""
    return {name: (lambda c, x, h, _name=name: torch.where(getattr(torch, _name)(x, h), x, 0.5)) for name in names}


def one(value: Tensor) -> Tensor:
    """The row's first number in place of all."""
    return value[:, :1].expand(-1, 4)


CALLS: dict[str, Function] = {
    **of_one(torch, "abs", "neg", "sigmoid", "tanh", "relu", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "erf"),
    **of_one(torch, "reciprocal", "sin", "cos", "sign", "sgn", "clone"),
    **of_one(F, "silu", "mish", "gelu", "softplus", "elu", "celu", "leaky_relu", "hardtanh", "hardsigmoid"),
    **of_one(F, "hardswish"),
    **of_two("div", "minimum", "maximum"),
    **chosen_by("gt", "ge", "lt", "le", "eq", "ne"),
    "add": lambda c, x, h: torch.add(x, h, alpha=0.5),
    "sub": lambda c, x, h: torch.sub(x, h, alpha=2),
    "rsub": lambda c, x, h: torch.rsub(x, h, alpha=2),
    "mul": lambda c, x, h: x * h,
    "addcmul": lambda c, x, h: torch.addcmul(x, h, c.w, value=0.3),
    "addcdiv": lambda c, x, h: torch.addcdiv(x, h, c.w, value=0.3),
    "lerp": lambda c, x, h: torch.lerp(x, h, 0.3),
    "pow.Tensor_Scalar": lambda c, x, h: x**3,
    "log_sigmoid_forward": lambda c, x, h: F.logsigmoid(x),
    "threshold": lambda c, x, h: F.threshold(x, 0.5, -2.0),
    "glu": lambda c, x, h: F.glu(x),
    "clamp": lambda c, x, h: torch.clamp(x, -1, 3),
    "clamp_min": lambda c, x, h: torch.clamp_min(x, -1),
    "clamp_max": lambda c, x, h: torch.clamp_max(x, 1),
    "where.self": lambda c, x, h: torch.where(h > 0, x, h),
    "masked_fill": lambda c, x, h: x.masked_fill(h > 0, 2.0),
    "logical_not": lambda c, x, h: torch.logical_not(h > 0),
    "bitwise_not": lambda c, x, h: ~(h > 0),
    "logical_and": lambda c, x, h: torch.logical_and(x > -1, h > 0),
    "bitwise_and": lambda c, x, h: (x > -1) & (h > 0),
    "logical_or": lambda c, x, h: torch.logical_or(x > 1, h > 0),
    "bitwise_or": lambda c, x, h: (x > 1) | (h > 0),
    "mm": lambda c, x, h: h @ c.M,
    "addmm": lambda c, x, h: torch.addmm(c.w, h, c.M, beta=0.5, alpha=2),
    "_trilinear": lambda c, x, h: F.bilinear(x, h, c.B),
    "bmm": lambda c, x, h: torch.bmm(x.unsqueeze(1), h.unsqueeze(2)),
    "split": lambda c, x, h: x.split(3, -1)[0],
    "split_with_sizes": lambda c, x, h: x.split([1, 3], -1)[1],
    "unsafe_split": lambda c, x, h: torch.unsafe_split(x, 3, -1)[0],
    "unsafe_split_with_sizes": lambda c, x, h: torch.unsafe_split_with_sizes(x, [1, 3], -1)[1],
    "slice": lambda c, x, h: x[:, 1:3],
    "select": lambda c, x, h: x[:, -1].unsqueeze(-1),
    "unbind": lambda c, x, h: x.unbind(-1)[2].unsqueeze(-1),
    "cat": lambda c, x, h: torch.cat([x[:, 2:], h[:, :2]], -1),
    "constant_pad_nd": lambda c, x, h: F.pad(x[:, 1:3], (1, 1), value=0.5) * h,
    "stack": lambda c, x, h: torch.stack([x[:, 2:], h[:, :2]], 1),
    "view": lambda c, x, h: x.view(-1, 2, 2).sum(-1),
    "_unsafe_view": lambda c, x, h: aten._unsafe_view(x, [x.shape[0], 2, 2]),
    "_reshape_alias": lambda c, x, h: aten._reshape_alias(x, [x.shape[0], 2, 2], [4, 2, 1]),
    "unsqueeze": lambda c, x, h: x.unsqueeze(1),
    "squeeze": lambda c, x, h: x.unsqueeze(1).squeeze(1),
    "expand": lambda c, x, h: x[:, :1].expand(-1, 4) * h,
    "_to_copy": lambda c, x, h: (x > h).to(x.dtype),
    "permute": lambda c, x, h: x.view(-1, 2, 2).permute(0, 2, 1),
    "transpose": lambda c, x, h: x.view(-1, 2, 2).transpose(1, 2),
    "flip": lambda c, x, h: x.flip(-1),
    "roll": lambda c, x, h: x.roll(1, -1),
    "cumsum": lambda c, x, h: x.cumsum(-1),
    "sum": lambda c, x, h: x.sum(-1, keepdim=True),
    "mean": lambda c, x, h: x.mean(-1, keepdim=True),
    "amax": lambda c, x, h: x.amax(-1, keepdim=True),
    "amin": lambda c, x, h: x.amin(-1, keepdim=True),
    "var.correction": lambda c, x, h: x.var(-1, keepdim=True),
    "var_mean.correction": lambda c, x, h: torch.cat(torch.var_mean(x, -1, correction=0, keepdim=True), -1),
    "std.correction": lambda c, x, h: x.std(-1, keepdim=True),
    "linalg_vector_norm": lambda c, x, h: x.norm(dim=-1, keepdim=True),
    "_softmax": lambda c, x, h: torch.softmax(x, -1),
    "_log_softmax": lambda c, x, h: torch.log_softmax(x, -1),
    "logsumexp": lambda c, x, h: torch.logsumexp(x, -1, keepdim=True),
    "native_layer_norm": lambda c, x, h: F.layer_norm(x, (4,), c.w, c.v),
    "native_group_norm": lambda c, x, h: F.group_norm(x, 2, c.w, c.v),
    "zeros_like": lambda c, x, h: torch.zeros_like(x) * h,
    "ones_like": lambda c, x, h: torch.ones_like(x) * h,
    "zeros": lambda c, x, h: torch.zeros(x.shape, dtype=x.dtype) + x,
    "ones": lambda c, x, h: torch.ones(x.shape, dtype=x.dtype) + x,
    "new_zeros": lambda c, x, h: x.new_zeros(x.shape) + x,
    "new_ones": lambda c, x, h: x.new_ones(4) + x,
    "zero": lambda c, x, h: x.clone().zero_() + h,
    "empty": lambda c, x, h: torch.empty(x.shape, dtype=x.dtype).fill_(2.0) * x,
    "empty_like": lambda c, x, h: torch.empty_like(x).copy_(h),
    "new_empty": lambda c, x, h: x.new_empty(x.shape).fill_(2.0) * x,
    "full": lambda c, x, h: torch.full(x.shape, 0.5, dtype=x.dtype) * x,
    "full_like": lambda c, x, h: torch.full_like(x, 0.5) * h,
    "new_full": lambda c, x, h: x.new_full(x.shape, 0.5) * h,
    "fill": lambda c, x, h: x.clone().fill_(0.5) * h,
    "copy": lambda c, x, h: torch.zeros_like(x).copy_(h),
    "scalar_tensor": lambda c, x, h: torch.scalar_tensor(0.5, dtype=x.dtype) * x,
    "rand": lambda c, x, h: torch.rand(x.shape, dtype=x.dtype) * x,
    "rand_like": lambda c, x, h: torch.rand_like(x) * x,
    "bernoulli": lambda c, x, h: torch.bernoulli(torch.sigmoid(h)) * x,
    "bernoulli.p": lambda c, x, h: torch.bernoulli(h, 0.25) * x,
    "bernoulli_.float": lambda c, x, h: torch.empty_like(x).bernoulli_(0.25) * x,
    "native_dropout": lambda c, x, h: torch.native_dropout(x, 0.25, True)[0],
}  # fmt: skip
MORE: dict[str, Function] = {
    "clamp, bounds crossed": lambda c, x, h: torch.clamp(x, 1.0, -1.0),
    "clamp, by tensors": lambda c, x, h: torch.clamp(x, c.w, c.w + 1),
    "clamp, from below by a tensor": lambda c, x, h: torch.clamp(x, min=h - 0.1),
    "lerp, by a tensor": lambda c, x, h: torch.lerp(x, h, c.w),
    "gelu, tanh": lambda c, x, h: F.gelu(x, approximate="tanh"),
    "softplus, sharp": lambda c, x, h: F.softplus(x, 2, 1),
    "elu, scaled": lambda c, x, h: F.selu(x),
    **{f"pow.Tensor_Scalar, {p}": (lambda c, x, h, _p=p: x**_p) for p in (0, 1, 2, -1, -2, 0.5, -0.5, 1.5, 2.5)},
    "mul, by a truth": lambda c, x, h: x * (h > 0),
    "mul, outer": lambda c, x, h: (x.unsqueeze(2) * h.unsqueeze(1)).flatten(1)[:, 5:9],
    "mul, outer, of one number": lambda c, x, h: (one(x).unsqueeze(2) * h.unsqueeze(1)).flatten(1)[:, 5:9],
    "bmm, outer": lambda c, x, h: torch.bmm(x.unsqueeze(2), h.unsqueeze(1)).flatten(1)[:, 5:9],
    "bmm, of a matrix": lambda c, x, h: torch.bmm(x.view(-1, 2, 2), h[:, 1:3].unsqueeze(2)).squeeze(2),
    "bmm, by a matrix": lambda c, x, h: torch.bmm(h[:, 1:3].unsqueeze(1), x.view(-1, 2, 2)).squeeze(1),
    "bmm, of one number": lambda c, x, h: torch.bmm(one(h).unsqueeze(1), x.unsqueeze(2)).squeeze(2),
    "_trilinear, of one number": lambda c, x, h: F.bilinear(one(x), h, c.B),
    "mm, of one number": lambda c, x, h: one(h) @ c.M,
    "native_group_norm, of one number": lambda c, x, h: F.group_norm(one(x), 2, c.w, c.v, 0.1),
    "mm, windows": lambda c, x, h: h[:, :2] @ c.M[1:3] + x @ c.M.t()[:, 1:3].repeat_interleave(2, 1),
    "mm, a window of one column": lambda c, x, h: F.linear(h[:, :1], c.M[:, :1][1:]),
    "mm, a window of a row": lambda c, x, h: h[:, :1] @ c.M[:1][:, 1:],
    "mm, a column cut across": lambda c, x, h: h[:, :1] @ c.w.view(4, 1).t()[:, 1:3],
    "mm, of ones beside": lambda c, x, h: torch.cat([h[:, :2], torch.ones_like(x[:, :2])], -1) @ c.M,
    "mm, of a zero beside": lambda c, x, h: torch.cat([h[:, :3], torch.zeros_like(x[:, :1])], -1) @ c.M,
    "add, a parameter of one number": lambda c, x, h: x + c.k,
    "add, a parameter of a row": lambda c, x, h: x + c.w.view(1, 4),
    "div, by a number": lambda c, x, h: x / 3,
    "sum, in groups": lambda c, x, h: x.view(-1, 2, 2).sum(-1),
    "_softmax, in groups": lambda c, x, h: torch.softmax(x.view(-1, 2, 2), -1).flatten(1),
    "amax, with ties": lambda c, x, h: torch.cat([x, x], -1).amax(-1, keepdim=True),
    "clamp_min, of a norm": lambda c, x, h: F.normalize(x, dim=-1),
    "masked_fill, by a parameter": lambda c, x, h: x.masked_fill(h > 0, c.k),
    "where.self, of numbers": lambda c, x, h: torch.where(h > 0, 1.0, 2.0) * x,
    "rsub, from zero": lambda c, x, h: 0 - x,
    "where.self, of zeros": lambda c, x, h: 1 / (torch.where(x > 0, 0.0, -0.0) * torch.ones_like(x)),
}  # fmt: skip
CALLS |= MORE
CHANCE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "rand": lambda u, x, h: u * x,
    "rand_like": lambda u, x, h: u * x,
    "bernoulli": lambda u, x, h: (u < torch.sigmoid(h)) * x,
    "bernoulli.p": lambda u, x, h: (u < 0.25) * x,
    "bernoulli_.float": lambda u, x, h: (u < 0.25) * x,
    "bernoulli_.float, of one half": lambda u, x, h: (u < 0.5) * x * 2,
    "native_dropout": lambda u, x, h: (u < 0.75) * x / 0.75,
    "native_dropout, of one half": lambda u, x, h: (u < 0.5) * x * 2,
}
CALLS["bernoulli_.float, of one half"] = lambda c, x, h: F.dropout(x, 0.5)  # the default, which torch leaves out
CALLS["native_dropout, of one half"] = lambda c, x, h: torch.native_dropout(x, 0.5, True)[0]
# torch writes these out in other calls before they are seen
NEVER_SEEN = {"contiguous", "reshape", "to", "view_as", "where.Scalar", "where.ScalarOther", "where.ScalarSelf"}
# there torch makes NaN of it, which follows from how it computes and not from what
NO_INFINITY = {"var_mean.correction", "lerp, by a tensor"}
# by a product, where 0 · NaN is NaN
NO_BAD_NUMBERS = {"cumsum"}
# whose derivatives torch computes with constants of its own in single precision
SINGLE = {"hardsigmoid", "celu"}
# at whose zeros torch mixes up the signs of the derivative
NO_ZEROS = {"pow.Tensor_Scalar, -0.5"}
EDGES = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, 3.0, -3.0, 6.0, 20.0, -20.0, 1e-3]


def edges_of(call: str) -> list[float]:
    """The edges at which a call's derivative is compared."""
    return [edge for edge in EDGES if edge != 0] if call in NO_ZEROS else EDGES


def as_exact(call: str, gradient: Tensor) -> Tensor:
    """A gradient in the precision in which it is compared."""
    return gradient.float() if call in SINGLE else gradient


def edge_rows(values: Sequence[float], size: int = 4) -> tuple[Tensor, Tensor]:
    """x and h whose elements meet in all pairs."""
    pairs = torch.tensor(list(itertools.product(values, values)), dtype=F64)
    pairs = torch.cat([pairs, torch.zeros(-len(pairs) % size, 2, dtype=F64)])
    return pairs[:, 0].view(-1, size).clone(), pairs[:, 1].view(-1, size).clone()


def assert_alike(found: Tensor, expected: Tensor, name: str = "value") -> None:
    """Close, and NaN at the same places."""
    wrong = (found.isnan() != expected.isnan()).nonzero()
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise AssertionError(f"{name} is {found[place]} at {list(place)}, expected {expected[place]}")
    assert_close(found.where(~found.isnan(), 0), expected.where(~expected.isnan(), 0), name)


def test_every_entry_of_the_table_has_a_call_here() -> None:
    assert {call.partition(",")[0] for call in CALLS} | NEVER_SEEN == set(TABLE)


@pytest.mark.parametrize("call", CALLS)
def test_a_call_means_what_torch_means(call: str) -> None:
    """Values at ordinary numbers, at kinks, and at NaN and infinity: bad numbers stay as bad as in torch."""
    cell, entry = Applied(CALLS[call]), call.partition(",")[0]
    seen: Counter[str] = Counter()

    def counted(name: str) -> Any:
        def call(*args: Any, _of: Any = TABLE[name], **kwargs: Any) -> Any:
            seen[name] += 1
            return _of(*args, **kwargs)

        return call

    with mock.patch.dict(TABLE, {entry: counted(entry)}):
        program = program_of(cell)
    assert seen[entry], f"{entry} was not reached; were {sorted(seen)}"
    bad = [] if call in NO_BAD_NUMBERS else [math.nan] if call in NO_INFINITY else [math.nan, math.inf, -math.inf]
    for values in ([0.3, -0.7, 1.3, -2.2], EDGES, [*EDGES[:5], *bad]):
        x, h = edge_rows(values)
        (found,) = results(program, cell, x, [[h]])
        if call in CHANCE:
            if values is not EDGES:
                continue
            expected = CHANCE[call](philox(7, torch.arange(len(x)), 0, 4), x, h)
        else:
            expected = cell(x, cell.State(h)).h
        assert_alike(found, expected)


@pytest.mark.parametrize("call", sorted(set(CALLS) - set(CHANCE)))
def test_a_call_s_gradient_is_torch_s(call: str) -> None:
    """Also at kinks: where torch's derivative is a convention, it is kept."""
    cell = Applied(CALLS[call])
    joint = derive(plan_of(cell))
    for x, h in (edge_rows([0.3, -0.7, 1.3, -2.2]), edge_rows(edges_of(call))):
        x.requires_grad_()
        h.requires_grad_()
        new = cell(x, cell.State(h)).h
        d = torch.randn(new.shape, dtype=F64)
        inputs = [x, h, *cell.parameters()]
        expected: Any = [torch.zeros_like(i) for i in inputs]
        if new.requires_grad:
            expected = torch.autograd.grad(new, inputs, d, allow_unused=True, materialize_grads=True)
        found = joint_gradients(joint, cell, x.detach(), [[h.detach()]], [d])
        names = ["x", "h", *(name for name, _ in cell.named_parameters())]
        for name, one, other in zip(names, found, expected, strict=True):
            assert_alike(as_exact(call, one), other, name)


def joint_gradients(
    joint: Any, cell: Cell, x: Tensor, states: Sequence[Sequence[Tensor]], ds: Sequence[Tensor], seed: int = 7
) -> list[Tensor]:
    """The gradients that a joint program gives: of x, the states slot by slot, and the cell's parameters."""
    program = joint.program
    sides = [r for w in joint.weights for r in (w.left, w.right)] + [v.value for v in joint.vectors]
    wanted = [p for p in range(len(program.results)) if p <= joint.x_gradient or p in sides]
    given = {v: ds[node.attributes[0]] for v, node in enumerate(program.nodes) if node.op == "gradient"}
    rows = torch.arange(len(x))
    computed = program._replace(results=tuple(program.results[p] for p in wanted))
    found = interpret(
        computed, x, states, lambda name: lookup(cell, name).detach(), lambda k, n: philox(seed, rows, k, n), given
    )

    def at(position: int) -> Tensor:
        value = program.results[position]
        return found[value].expand(len(x), program.nodes[value].size)

    values = {program.results[each.parameter] for each in (*joint.weights, *joint.vectors)}
    read = parameters(program.nodes, values, lambda name: lookup(cell, name))
    d_read = {value: torch.zeros_like(read[value], dtype=F64) for value in values}
    for w in joint.weights:
        product = at(w.left).T @ at(w.right)
        d_read[program.results[w.parameter]][
            w.row : w.row + product.shape[0], w.column : w.column + product.shape[1]
        ] += product
    for v in joint.vectors:
        value = program.results[v.parameter]
        d_read[value] += at(v.value).sum(0).view(read[value].shape)
    leaves = list(cell.parameters())
    pairs = [(read[v], d_read[v]) for v in values if read[v].requires_grad]
    d_leaves: Any = [torch.zeros_like(leaf) for leaf in leaves]
    if pairs:
        ys, gs = zip(*pairs, strict=True)
        d_leaves = torch.autograd.grad(ys, leaves, gs, allow_unused=True, materialize_grads=True)
    head = [at(joint.x_gradient), *(at(joint.forward + k) for k in range(joint.states))]
    return [*head, *d_leaves]


# Tracing: what programs have no word for.


def closure() -> Callable[..., Any]:
    table = torch.arange(12, dtype=F64).view(3, 4)
    return lambda c, x, h: x + table[0]


def overwritten(c: Any, x: Tensor, h: Tensor) -> Tensor:
    whole = h.clone()
    whole[:, 1:3].mul_(2)
    return whole


def counting(c: Any, x: Tensor, h: Tensor) -> Tensor:
    c.steps += 1
    return x * c.steps


ROWS = "a reduction over rows, which makes results depend on which sequences share a batch"
NUMBER = torch.tensor(2.0)
REFUSED: dict[str, tuple[Function, str]] = {
    "a branch": (lambda c, x, h: x if h.sum() > 0 else h, "a number that depends on data"),
    "a number": (lambda c, x, h: x * h.max().item(), r"a reduction|torch's max|a number that depends on data"),
    "a number of a parameter": (lambda c, x, h: x * c.w[0].item(), "a number that depends on data"),
    "an op without a word": (lambda c, x, h: x.cumprod(-1), "torch's cumprod"),
    "a sum over the batch": (lambda c, x, h: x - x.sum(0), ROWS),
    "a mean over the batch": (lambda c, x, h: x - x.mean(0, keepdim=True), ROWS),
    "a mean of everything": (lambda c, x, h: x - x.mean(), ROWS),
    "the largest of everything": (lambda c, x, h: x - x.amax(), ROWS),
    "the smallest of everything": (lambda c, x, h: x - x.amin(), ROWS),
    "a changed view": (overwritten, "reading a tensor after a view of it was changed in place"),
    "the number of rows": (lambda c, x, h: x / x.shape[0], "number of rows"),
    "a tensor of nobody's": (closure(), "a tensor of shape"),
    "a number of nobody's": (lambda c, x, h: x * NUMBER, "is no parameter, buffer or attribute"),
    "one draw for all rows": (lambda c, x, h: x * torch.rand(4), "drawing at random for all rows at once"),
    "normal numbers": (lambda c, x, h: x + torch.randn_like(x), "torch's randn_like|torch's normal"),
    "noise on a parameter": (lambda c, x, h: x * (c.w + torch.randn_like(c.w)), "random"),
    "a mask on a parameter": (lambda c, x, h: h @ (c.M * torch.rand_like(c.M).round()), "random"),
    "a change of dtype": (lambda c, x, h: x.float() * h, "a change of dtype"),
    "rows times rows": (lambda c, x, h: x @ h.t(), "torch's t |matrix product|taking rows apart"),
    "rows moved": (lambda c, x, h: x.roll(1, 0), "taking rows apart"),
    "everything moved": (lambda c, x, h: x.roll(1), "taking rows apart"),
    "rows turned round": (lambda c, x, h: x.flip(0), "taking rows apart"),
    "one row for all": (lambda c, x, h: h - x[:1], "taking rows apart"),
    "one row for all, by a detour": (lambda c, x, h: h - x.unsqueeze(0)[:, 0], "taking rows apart"),
    "a stopped gradient": (lambda c, x, h: x + h.detach(), "detach"),
    "rows cut": (lambda c, x, h: torch.cat([x[1:], x[:1]]), "taking rows apart"),
    "a counter": (counting, "in place|parameter or buffer"),
    "a power of two tensors": (lambda c, x, h: x**h, "torch's pow"),
    "a slice with a step": (lambda c, x, h: x[:, ::2], "a slice with a step"),
    "many groups": (lambda c, x, h: torch.softmax(torch.cat([x] * 10, -1).view(-1, 20, 2), -1), "20 groups"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_word_is_refused_with_its_line(what: str) -> None:
    function, message = REFUSED[what]
    cell = Applied(function)
    cell.register_buffer("steps", torch.zeros((), dtype=F64))
    with pytest.raises(Untraceable, match=message) as caught:
        program_of(cell)
    if what != "the number of rows":
        assert "test_program.py, line " in str(caught.value)
    assert cell.steps == 0, "tracing changed a buffer"


def test_a_cell_s_own_mistakes_are_told() -> None:
    def wrong(c: Any, x: Tensor, h: Tensor) -> Tensor:
        raise ValueError("no such gate")

    with pytest.raises(Untraceable, match="raised ValueError: no such gate"):
        program_of(Applied(wrong))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda s, x: s.h, "does not return its State"),
        (lambda s, x: type(s)(s.h[:, :1]), "other shapes than its State promises"),
        (lambda s, x: type(s)(None), "other shapes than its State promises"),
    ],
)
def test_other_answers_than_states_are_refused(answer: Any, message: str) -> None:
    cell = Applied(lambda c, x, h: x)
    cell.forward = lambda x, s: answer(s, x)  # type: ignore[method-assign]
    with pytest.raises(Untraceable, match=message):
        program_of(cell)


def test_what_is_computed_of_nothing_has_no_program_but_may_be_joined() -> None:
    class Summing(Cell):
        def forward(self, x: Tensor, s: Any) -> Any:
            return self.State(s.h + x[..., 3:].sum(-1, keepdim=True))

    class Joining(Cell):
        def forward(self, x: Tensor, s: Any) -> Any:
            return self.State(torch.cat([x[..., 3:], x, s.h[..., :1]], -1))

    with pytest.raises(Untraceable, match="torch's sum of a tensor without elements"):
        trace(Summing(3, 4), 3, (4,), LIKE)
    trace(Joining(3, 4), 3, (4,), LIKE)


@given(recipes(chance=True))
@settings(max_examples=10)
def test_tracing_leaves_the_random_generator_alone(recipe: Recipe) -> None:
    cell = RandomCell(recipe)
    before = torch.get_rng_state()
    first = program_of(cell)
    assert torch.equal(torch.get_rng_state(), before)
    assert program_of(cell) == first


# Tracing, random cells.


def loop(cell: RandomCell, x: Tensor, states: Sequence[Tensor], seed: int = 7) -> Any:
    """The cell itself, its random numbers drawn as programs draw them."""
    with drawn_by_philox(seed):
        return cell(x, cell.State(*states))


@given(recipes(chance=True))
@settings(max_examples=60)
def test_a_traced_cell_means_what_it_says(recipe: Recipe) -> None:
    cell = RandomCell(recipe)
    program = program_of(cell)
    x, states = batch_of(program, 4)
    assert_close(tuple(results(program, cell, x, states)), tuple(loop(cell, x, states[0])))
    assert Program.from_text(program.to_text()) == program


# Passes.


@given(recipes(chance=True))
@settings(max_examples=60)
def test_each_pass_keeps_the_meaning(recipe: Recipe) -> None:
    cell = RandomCell(recipe)
    program = unroll(program_of(cell), 1)
    x, states = batch_of(program)
    expected = tuple(results(program, cell, x, states))
    for step in (split, fold, linearise, merge, fuse):
        program = step(program)
        assert_close(tuple(results(program, cell, x, states)), expected, step.__name__)
        assert program == prune(program), f"{step.__name__} leaves dead nodes"
    assert program == plan_of(cell)
    assert Program.from_text(program.to_text()) == program
    for step in (split, fold, linearise, merge, fuse):
        assert_close(tuple(results(step(program), cell, x, states)), expected, f"{step.__name__} once more")
    check_the_loop(program)


def check_the_loop(program: Program) -> None:
    """What the passes promise: what is known before a state is known is not computed in the loop."""
    readers = users(program.nodes)
    for value, node in enumerate(program.nodes):
        if node.op not in ("x", "state", "uniform", "gradient") and node.rate > PARAMETER:
            assert node.rate == max(program.nodes[arg].rate for arg in node.args), node
        if node.op != "affine" or node.rate != STATE:
            continue
        assert all(program.nodes[v].rate == STATE for v, _, _ in products(node)), "a product left in the loop"
        once = len(readers[value]) == 1 and value not in program.results
        reader = program.nodes[readers[value][0]] if once else None
        assert reader is None or reader.op != "add" or reader.size != node.size, "a sum beside a product"


class Followed(TorchDispatchMode):
    """Knows which tensors depend on certain ones."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.kept = list(tensors)
        self.ids = {id(tensor) for tensor in self.kept}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        filled = func.__name__.startswith("new_") or "_like" in func.__name__  # of a tensor's shape alone
        if not filled and any(id(leaf) in self.ids for leaf in tree_leaves((args, kwargs))):
            made = [
                leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)
            ]  # of an in-place call its first argument
            self.kept += made
            self.ids |= {id(leaf) for leaf in made}
        return out


@given(recipes(totals=True, lines=8), st.integers(1, 3))
@settings(max_examples=40)
def test_unrolling_sums_over_predecessors(recipe: Recipe, slots: int) -> None:
    """Oracle: the cell called once for each predecessor, all in one batch, with `total` the sum over these calls."""
    cell = RandomCell(recipe)
    program = unroll(program_of(cell), slots)
    x, states = batch_of(program)

    together = [torch.cat(fields) for fields in zip(*states, strict=True)]
    followed = Followed(together)

    def over_calls(value: Tensor) -> Tensor:
        """The sum; what is the same for all predecessors is there once."""
        with _disable_current_modes():
            return value.view(slots, len(x), -1).sum(0).repeat(slots, 1) if id(value) in followed.ids else value

    with torch.no_grad(), meaning_of_total(over_calls), followed:
        new = cell(x.repeat(slots, 1), cell.State(*together))
    expected = tuple(field[: len(x)] for field in new)
    assert_close(tuple(results(program, cell, x, states)), expected)
    assert_close(tuple(results(simplify(program), cell, x, states)), expected, "simplified")
    assert Program.from_text(program.to_text()) == program


def test_unrolling_tells_of_a_field_that_keeps_predecessors_apart() -> None:
    with pytest.raises(CellError, match=r"field 0 of the new state keeps 2 predecessors apart; sum them with total\("):
        unroll(program_of(Applied(lambda c, x, h: x + h)), 2)


class TorchStyle(Cell):
    """An LSTM as torch.nn.LSTMCell has it: two biases, gates cut from one sum."""

    State = namedtuple("State", "h c")

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        for name, size in (("ih", input_size), ("hh", hidden_size)):
            self.register_parameter(f"weight_{name}", nn.Parameter(torch.randn(4 * hidden_size, size)))
            self.register_parameter(f"bias_{name}", nn.Parameter(torch.randn(4 * hidden_size)))

    def forward(self, x: Tensor, s: Any) -> Any:
        gates = F.linear(x, self.weight_ih, self.bias_ih) + F.linear(s.h, self.weight_hh, self.bias_hh)
        i, f, g, o = gates.chunk(4, 1)
        c = torch.sigmoid(f) * s.c + torch.sigmoid(i) * torch.tanh(g)
        return self.State(torch.sigmoid(o) * torch.tanh(c), c)


class OneByOne(Cell):
    """An LSTM with a Linear for every gate and side."""

    State = namedtuple("State", "h c")

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.W = nn.ModuleList(nn.Linear(input_size, hidden_size) for _ in range(4))
        self.U = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(4))

    def forward(self, x: Tensor, s: Any) -> Any:
        i, f, g, o = (w(x) + u(s.h) for w, u in zip(self.W, self.U, strict=True))
        c = f.sigmoid() * s.c + i.sigmoid() * g.tanh()
        return self.State(o.sigmoid() * c.tanh(), c)


class Beside(TorchStyle):
    """An LSTM over x and h side by side."""

    def forward(self, x: Tensor, s: Any) -> Any:
        weight = torch.cat([self.weight_ih, self.weight_hh], 1)
        i, f, g, o = F.linear(torch.cat([x, s.h], -1), weight, self.bias_ih).chunk(4, -1)
        c = torch.sigmoid(f) * s.c + torch.sigmoid(i) * torch.tanh(g)
        return self.State(torch.sigmoid(o) * torch.tanh(c), c)


def affines(program: Program, rate: int) -> list[Node]:
    return [node for node in program.nodes if node.op == "affine" and node.rate == rate]


@pytest.mark.parametrize(
    ("cell", "before", "within"),
    [
        (LSTM(3, 5), 1, 1),
        (TorchStyle(3, 5), 1, 1),
        (Beside(3, 5), 1, 1),
        (Elman(3, 5), 1, 1),
        (GRU(3, 5), 1, 2),  # r, z and n apart: n's product is multiplied before it is added
        (GRU(3, 5, reset="before"), 1, 2),
    ],
    ids=["lstm", "torch's", "beside", "elman", "gru", "gru before"],
)
def test_how_many_products_a_cell_comes_to(cell: Cell, before: int, within: int) -> None:
    program = plan_of(cell.double())
    assert (len(affines(program, INPUT)), len(affines(program, STATE))) == (before, within)
    assert all(len(node.args) % 2 for node in affines(program, INPUT)), "a bias is where its product starts"
    check_the_loop(program)


def test_an_lstm_is_the_same_program_however_it_is_spelt() -> None:
    """But for what the biases are."""
    shapes = []
    for cell in (LSTM(3, 5), TorchStyle(3, 5)):
        program = plan_of(cell.double())
        shapes.append([(node.op, node.shape, node.rate) for node in program.nodes if node.rate > PARAMETER])
    assert shapes[0] == shapes[1]
    assert [node.op for node in plan_of(TorchStyle(3, 5).double()).nodes if node.rate == PARAMETER].count(
        "parameter"
    ) == 4


# The adjoint.


@given(recipes(chance=True))
@settings(max_examples=60)
def test_the_adjoint_is_autograd_s(recipe: Recipe) -> None:
    cell = RandomCell(recipe)
    joint = derive(plan_of(cell))
    x, states = batch_of(joint.program)
    new = tuple(loop(cell, x, states[0]))
    ds = [torch.randn(field.shape, dtype=F64) for field in new]
    inputs = {"x": x, **dict(zip(FIELDS, states[0], strict=False)), **dict(cell.named_parameters())}
    expected: Any = [torch.zeros_like(value) for value in inputs.values()]
    if any(field.requires_grad for field in new):
        pairs = [(field, d) for field, d in zip(new, ds, strict=True) if field.requires_grad]
        ys, gs = zip(*pairs, strict=True)
        expected = torch.autograd.grad(ys, list(inputs.values()), gs, allow_unused=True, materialize_grads=True)
    fixed = [[field.detach() for field in slot] for slot in states]
    found = joint_gradients(joint, cell, x.detach(), fixed, ds)
    assert_close(dict(zip(inputs, found, strict=True)), dict(zip(inputs, expected, strict=True)), "gradient")
    assert_close(
        tuple(results(joint.program._replace(results=joint.program.results[: joint.forward]), cell, x, states)), new
    )
    assert Program.from_text(joint.program.to_text()) == joint.program


@given(recipes(totals=True, lines=6), st.integers(2, 3))
@settings(max_examples=15)
def test_the_adjoint_over_several_predecessors(recipe: Recipe, slots: int) -> None:
    cell = RandomCell(recipe)
    program = simplify(unroll(program_of(cell), slots))
    joint = derive(program)
    x, states = batch_of(program)
    new = results(program, cell, x, states)
    ds = [torch.randn(field.shape, dtype=F64) for field in new]
    inputs = [x, *itertools.chain(*states), *cell.parameters()]
    expected = torch.autograd.grad(
        sum((y * d).sum() for y, d in zip(new, ds, strict=True)), inputs, allow_unused=True, materialize_grads=True
    )  # type: ignore[arg-type]
    found = joint_gradients(joint, cell, x.detach(), [[field.detach() for field in slot] for slot in states], ds)
    assert_close(tuple(found), tuple(expected), "gradient")


# Save or recompute.


def small_program(seed: int) -> Program:
    """A few values over a state of three elements."""
    source, b = random.Random(seed), Builder()
    weight = b.leaf("parameter", ("W",), (3, 3), PARAMETER)
    values = [b.leaf("state", (0, 0), (3,), STATE), b.leaf("x", (), (3,), INPUT)]
    while len(values) < source.randint(5, 10):
        one, other = source.choice(values[-4:]), source.choice(values)
        kind = source.randint(0, 8)
        if kind < 3:
            made = b.apply(source.choice(("tanh", "sigmoid", "exp", "relu", "neg", "erf")), one)
        elif kind < 6:
            made = b.apply(
                source.choice(("add", "mul", "div", "maximum", "pow") if kind < 5 else ("add", "mul")),
                one,
                other if kind != 4 else one,
            )
        elif kind == 6:
            made = b.sum(one)
        elif kind == 7 and b.size(one) == 3:
            made = b.slice(one, 1, 1)
        elif b.size(one) == 3:
            made = b.affine(None, [(one, weight, Term(0, 0, False))], 3)
        else:
            made = b.expand(one, 3)
        if made not in values:
            values.append(made)
    return Program(tuple(b.nodes), (values[-1],), (3,), 3)


def cost_of_saving(nodes: Sequence[Node], saved: set[int], needed: set[int], free: set[int]) -> float:
    """SAVE for an element of each saved value, and what computing the others once more costs."""
    total, done, waiting = 0.0, set(), [value for value in needed if value not in free]
    while waiting:
        value = waiting.pop()
        if value in done:
            continue
        done.add(value)
        node = nodes[value]
        if value in saved:
            total += SAVE * node.size
            continue
        kind = OPS[node.op].kind
        if kind == PRODUCT:
            return math.inf
        elements = max([node.size, *(nodes[arg].size for arg in node.args)])
        total += 0.5 if kind == LAYOUT else OPS[node.op].cost * elements
        waiting += [arg for arg in node.args if arg not in free]
    return total


@pytest.mark.parametrize("first", range(0, 120, 40))
def test_what_is_saved_is_the_cheapest_choice(first: int) -> None:
    """By brute force over all subsets."""
    sizes = Counter()
    for seed in range(first, first + 40):
        program = small_program(seed)
        nodes, source = program.nodes, random.Random(seed)
        free = {value for value, node in enumerate(nodes) if node.op in ("x", "state", "parameter")}
        computed = [value for value in range(len(nodes)) if value not in free]
        needed = set(source.sample(computed, min(len(computed), source.randint(1, 3))))
        best = min(
            cost_of_saving(nodes, set(saved), needed, free)
            for count in range(len(computed) + 1)
            for saved in itertools.combinations(computed, count)
        )
        chosen = choose_saved(nodes, needed, free)
        assert cost_of_saving(nodes, chosen, needed, free) == pytest.approx(best), (seed, nodes, needed, chosen)
        assert not chosen & free
        sizes[len(chosen), len(needed)] += 1
    assert len(sizes) > 2, "the programs are too much alike to say anything"


# The code of the machine, run in NumPy.


UNARY: dict[str, Callable[[np.ndarray], Any]] = {
    "copy": lambda x: x,
    "neg": np.negative,
    "abs": np.abs,
    "sign": np.sign,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "reciprocal": lambda x: 1 / x,
    "erf": np.vectorize(math.erf, otypes=[float]),
    "softplus": lambda x: np.logaddexp(x, 0),
    "sin": np.sin,
    "cos": np.cos,
    "sum": np.sum,
    "max": np.max,
}
BINARY: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "pow": np.power,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lt": np.less,
    "le": np.less_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "sigmoid_back": lambda d, y: d * y * (1 - y),
    "tanh_back": lambda d, y: d * (1 - y * y),
    "outer": lambda a, b: np.outer(a, b).ravel(),
    "outer_right": lambda m, v: m.reshape(-1, len(v)) @ v,
    "outer_left": lambda m, v: v @ m.reshape(len(v), -1),
}
TERNARY: dict[str, Callable[..., Any]] = {
    "where": lambda c, a, b: np.where(c != 0, a, b),
    "mul_add": lambda a, b, c: a * b + c,
}
IN_PLACE = {name for name, op in OPS.items() if op.kind == ELEMENTS} | {"copy"}


class Machine:
    """Runs code over a dense chain, element by element as it says, and is strict about it.

    Memory is NaN until it is written, and NaN again when what it held may be gone: a row's TEMP with the row and with
    every product, a block's SCRATCH with the routine. No result may lie across an operand, unless it takes its place.

    Args:
        code: what to run.
        values: of the parameters that it reads.
        time, batch: of the chain.
        bulk: run what is free of states for all rows at once, as the engine does with few sequences.
    """

    def __init__(self, code: Code, values: Sequence[Tensor], time: int, batch: int, bulk: bool) -> None:
        self.code, self.time, self.batch, self.bulk = code, time, batch, bulk
        self.values = [value.detach().numpy() for value in values]
        self.rows = time * batch
        self.const = np.full(code.const, np.nan)
        for offset, size, number in code.constants:
            self.const[offset : offset + size] = number
        for offset, size, parameter in code.vectors:
            self.const[offset : offset + size] = self.values[parameter].ravel()
        self.frame = np.full((self.rows, code.frame), np.nan)
        self.fields = range(len(code.state_sizes))
        s = code.spaces
        self.states = {s.prev(f, 0) for f in self.fields} | set(range(s.out(0), s.total))
        self.written = {
            BEFORE: {TEMP, SCRATCH, FRAME, *(s.out(f) for f in self.fields)},
            LOOP: {TEMP, SCRATCH, FRAME, *(s.out(f) for f in self.fields)},
            BACK: {TEMP, SCRATCH, FRAME, *(s.dprev(f, 0) for f in self.fields)},
            AFTER: {TEMP, SCRATCH, FRAME, DX},
        }

    def run(self, routine: int, spaces: dict[int, np.ndarray]) -> None:
        """One routine over rows; spaces: (rows, size) each."""
        rows = len(spaces[X])
        spaces = {**spaces, SCRATCH: np.full((rows, self.code.scratch), np.nan)}
        steps = self.code.routines[routine]
        for is_run, group in itertools.groupby(steps, lambda step: isinstance(step, Instruction)):
            if not is_run:
                for product in group:
                    self._multiply(product, routine, spaces, rows)
                continue
            run = list(group)
            for row in range(rows):
                temp = np.full(self.code.temp, np.nan)
                for instruction in run:
                    self._execute(
                        instruction,
                        routine,
                        {**{k: v[row] for k, v in spaces.items()}, CONST: self.const, TEMP: temp},
                        row,
                    )

    def _read(self, spaces: dict[int, np.ndarray], place: Place, step: Any) -> np.ndarray:
        assert place.space in spaces, f"{step} reads a space that is not there"
        assert place.offset + place.size <= spaces[place.space].shape[-1], f"{step} reads beyond its memory"
        found = spaces[place.space][..., place.offset : place.offset + place.size]
        assert not np.isnan(found).any(), f"{step} reads what is not there (any more)"
        return found.copy()

    def _check(self, step: Any, routine: int, out: Place, others: Sequence[Place], in_place: bool) -> None:
        assert out.space in self.written[routine], f"{step} writes where it may not"
        for other in others:
            if (
                other.space != out.space
                or other.offset >= out.offset + out.size
                or out.offset >= other.offset + other.size
            ):
                continue
            same = other.offset == out.offset and other.size == out.size
            assert same, f"{step} writes across what it reads"
            assert in_place, f"{step} writes over what it reads"

    def _execute(self, i: Instruction, routine: int, spaces: dict[int, np.ndarray], row: int) -> None:
        name, _, variant = i.op.partition(".")
        self._check(i, routine, i.out, i.args, name in IN_PLACE)
        args = [self._read(spaces, place, i) for place in i.args]
        assert [len(arg) == 1 for arg in args] == [letter == "s" for letter in variant] or not variant or i.size == 1
        if name == "uniform":
            made = philox(self.seed, torch.tensor([self.first_row + row]), i.extra, i.size)[0].numpy()
        elif name == "expand":
            made = np.full(i.size, args[0][0])
        else:
            with np.errstate(all="ignore"):
                made = {1: UNARY, 2: BINARY, 3: TERNARY}[len(args)][name](*args)
        if name.startswith("outer"):
            assert i.extra == len(args[1])
        assert np.size(made) == i.size == i.out.size, i
        spaces[i.out.space][i.out.offset : i.out.offset + i.size] = made

    def _multiply(self, p: Any, routine: int, spaces: dict[int, np.ndarray], rows: int) -> None:
        self._check(p, routine, p.out, p.left, in_place=False)  # panel by panel: later ones still read what is left
        self._check(p, routine, p.out, [p.start] if p.start else [], in_place=True)
        assert TEMP not in (p.out.space, *(place.space for place in p.left)), f"{p} works on a row's memory"
        whole = {**spaces, CONST: np.broadcast_to(self.const, (rows, len(self.const)))}
        made = self._read(whole, p.start, p) if p.start else np.zeros((rows, p.size))
        pack = self.code.packs[p.pack]
        assert pack.size == p.size
        for place, (parameter, term, depth) in zip(p.left, pack.parts, strict=True):
            assert depth == place.size
            weight, (row, column, back) = self.values[parameter], term
            window = (
                weight[row : row + depth, column : column + p.size]
                if back
                else weight[row : row + p.size, column : column + depth].T
            )
            assert window.shape == (depth, p.size), f"{p} reads beyond its weights"
            made = made + self._read(whole, place, p) @ window
        spaces[p.out.space][:, p.out.offset : p.out.offset + p.size] = made

    def _level(self, level: int) -> slice:
        return slice(level * self.batch, (level + 1) * self.batch)

    def _before(self, level: int) -> dict[int, np.ndarray]:
        """A level's own rows, and its predecessors' states."""
        rows = self._level(level)
        spaces = {X: self.x[rows], FRAME: self.frame[rows]}
        for f in self.fields:
            spaces[self.code.spaces.prev(f, 0)] = self.entry[f] if level == 0 else self.out[f][self._level(level - 1)]
        self.first_row = rows.start
        return {**spaces, **self._out(rows)}

    def _out(self, rows: slice) -> dict[int, np.ndarray]:
        return {self.code.spaces.out(f): self.out[f][rows] for f in self.fields}

    def forward(self, x: np.ndarray, entry: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
        """All rows' states."""
        self.x, self.entry, self.seed = x, entry, seed
        self.out = [np.full((self.rows, size), np.nan) for size in self.code.state_sizes]
        if self.bulk:
            self.first_row = 0
            self.run(BEFORE, {X: x, FRAME: self.frame, **self._out(slice(None))})
        for level in range(self.time):
            spaces = self._before(level)
            if not self.bulk:
                self.run(BEFORE, {X: spaces[X], FRAME: spaces[FRAME], **self._out(self._level(level))})
            self.run(LOOP, spaces)
        return self.out

    def backward(self, d_out: Sequence[np.ndarray | None], d_last: Sequence[np.ndarray], x: bool) -> tuple[Any, ...]:
        """The gradients of x, the entry states and the parameter values."""
        s = self.code.spaces
        d_x = np.full(self.x.shape, np.nan)
        carry = [d.copy() for d in d_last]
        reads = {place.space for step in self.code.routines[AFTER] for place in _operands(step)}
        together = self.bulk and not reads & self.states
        for level in reversed(range(self.time)):
            spaces, rows = self._before(level), self._level(level)
            d_prev = [np.full_like(field, np.nan) for field in carry]
            for f in self.fields:
                spaces[s.carry(f)], spaces[s.dprev(f, 0)] = carry[f], d_prev[f]
                if d_out[f] is not None:
                    spaces[s.dout(f)] = d_out[f][rows]
            if x:
                spaces[DX] = d_x[rows]
            self.run(BACK, spaces)
            if not together:
                self.run(AFTER, spaces)
            carry = d_prev
        if together:
            self.first_row = 0
            self.run(AFTER, {X: self.x, FRAME: self.frame, **({DX: d_x} if x else {})})
        d_values = [np.zeros(value.shape if value.ndim == 2 else (1, value.size)) for value in self.values]
        for r in self.code.reductions:
            left = self._side(r.left, d_out, d_x if x else None)
            if r.matrix:
                product = left.T @ self._side(r.right, d_out, d_x if x else None)
                d_values[r.parameter][r.row : r.row + product.shape[0], r.column : r.column + product.shape[1]] += (
                    product
                )
            else:
                d_values[r.parameter][0, r.row : r.row + left.shape[1]] += left.sum(0)
        return d_x if x else None, carry, [d.reshape(v.shape) for d, v in zip(d_values, self.values, strict=True)]

    def _side(self, place: Place, d_out: Sequence[np.ndarray | None], d_x: np.ndarray | None) -> np.ndarray:
        """All rows of what a reduction reads, when all is done."""
        s = self.code.spaces
        lasting: dict[int, Any] = {X: self.x, FRAME: self.frame, **({} if d_x is None else {DX: d_x})}
        for f in self.fields:
            lasting[s.out(f)] = self.out[f]
            lasting[s.prev(f, 0)] = np.concatenate([self.entry[f], self.out[f]])[: self.rows]
            if d_out[f] is not None:
                lasting[s.dout(f)] = d_out[f]
        return self._read(lasting, place, "a reduction")


def _operands(step: Any) -> list[Place]:
    if isinstance(step, Instruction):
        return list(step.args)
    return [*step.left, *([step.start] if step.start else [])]


def unfolded(cell: RandomCell, x: Tensor, entry: Sequence[Tensor], batch: int, seed: int) -> Any:
    """The states of all rows of a dense chain, by the cell."""
    state, states = cell.State(*entry), []
    with drawn_by_philox(seed):
        for step in x.split(batch):
            state = cell(step, state)
            states.append(state)
    return [torch.cat(field) for field in zip(*states, strict=True)]


@given(recipes(chance=True), st.booleans(), st.booleans(), st.integers(1, 3))
@settings(max_examples=80)
def test_the_machine_s_code_does_what_the_cell_does(recipe: Recipe, bulk: bool, x_wanted: bool, outputs: int) -> None:
    """Values and gradients; and no place is given away that is still needed."""
    cell, time, batch, seed = RandomCell(recipe), 3, 2, 11
    joint = derive(plan_of(cell))
    douts = tuple(field < outputs for field in range(len(recipe.sizes)))
    x = batch_of(joint.program, time * batch)[0]
    entry = batch_of(joint.program, batch, seed=1)[1][0]
    expected = unfolded(cell, x, entry, batch, seed)

    plain = lower(joint, Wants(False, False, (False,) * len(douts)))
    code = lower(joint, Wants(True, x_wanted, douts))
    for each in (plain, code):
        values = parameters(joint.program.nodes, each.parameters, lambda name: lookup(cell, name))
        machine = Machine(each, [values[p].double() for p in each.parameters], time, batch, bulk)
        found = machine.forward(x.detach().numpy(), [field.detach().numpy() for field in entry], seed)
        assert_close([torch.from_numpy(field) for field in found], [field.detach() for field in expected], "states")

    d_out = [
        torch.randn(field.shape, dtype=F64) if asked else None for field, asked in zip(expected, douts, strict=True)
    ]
    d_last = [torch.randn(batch, size, dtype=F64) for size in recipe.sizes]
    loss = torch.zeros((), dtype=F64)
    for field, d, last in zip(expected, d_out, d_last, strict=True):
        loss = loss + (field[-batch:] * last).sum() + (0 if d is None else (field * d).sum())
    inputs = {"x": x, **dict(zip(FIELDS, entry, strict=False)), **dict(cell.named_parameters())}
    anchored = loss + sum(value.sum() * 0 for value in inputs.values())
    wanted = dict(zip(inputs, torch.autograd.grad(anchored, list(inputs.values())), strict=True))

    numbers = [None if d is None else d.numpy() for d in d_out]
    d_x, d_entry, d_values = machine.backward(numbers, [d.numpy() for d in d_last], x_wanted)
    read = [values[p] for p in code.parameters]
    pairs = [(value, torch.from_numpy(d)) for value, d in zip(read, d_values, strict=True) if value.requires_grad]
    leaves = list(cell.parameters())
    d_leaves: Any = [torch.zeros_like(leaf) for leaf in leaves]
    if pairs:
        ys, gs = zip(*pairs, strict=True)
        d_leaves = torch.autograd.grad(ys, leaves, gs, allow_unused=True, materialize_grads=True)
    got = [*([torch.from_numpy(d_x)] if x_wanted else []), *(torch.from_numpy(d) for d in d_entry), *d_leaves]
    names = [name for name in inputs if x_wanted or name != "x"]
    assert_close(dict(zip(names, got, strict=True)), {name: wanted[name] for name in names}, "gradient")


@pytest.mark.parametrize("gradients", [False, True])
def test_a_state_that_is_known_before_the_loop_is_written_there(gradients: bool) -> None:
    code = lower(derive(plan_of(QRNN(3, 4).double())), Wants(gradients, gradients, (gradients, False, False)))
    written = [{step.out.space for step in routine} for routine in code.routines]
    h, c, v = (code.spaces.out(field) for field in range(3))
    assert v in written[BEFORE] - written[LOOP]
    assert {h, c} <= written[LOOP] - written[BEFORE]


@given(recipes(chance=True), st.booleans())
@settings(max_examples=20)
def test_the_machine_takes_the_code(recipe: Recipe, gradients: bool) -> None:
    from ritornello import _core

    joint = derive(plan_of(RandomCell(recipe)))
    code = lower(joint, Wants(gradients, gradients, (gradients,) * len(recipe.sizes)))
    numbers = {name: number for number, name in enumerate(_core.op_names())}
    core = _core.Code(*encode(code, numbers))
    assert core.frame_stride >= code.frame


# The table of ops, and chance.


def test_the_two_tables_of_ops_agree() -> None:
    """Each element-wise op of Python is one of the machine's, with the same number of arguments, and the reverse."""
    from ritornello import _core

    names = _core.op_names()
    assert len(set(names)) == len(names)
    machine = {name for name in names if "." not in name}
    binary = {name.partition(".")[0] for name in names if "." in name}
    assert {f"{name}.{way}" for name in binary for way in ("vs", "sv")} == {name for name in names if "." in name}
    elements = {name: op for name, op in OPS.items() if op.kind == ELEMENTS}
    others = {name for name, op in OPS.items() if op.kind in (REDUCTION, PRODUCT)} - {"affine"} | {"expand"}
    assert machine == set(elements) | others | {"copy", "uniform"}
    for name, op in elements.items():
        arguments = [torch.ones(2, dtype=F64)] * 3
        counts = []
        for count in (1, 2, 3):
            try:
                op.meaning(*arguments[:count])
            except TypeError:
                continue
            counts.append(count)
        assert (2 in counts) == (name in binary), name


def test_the_two_tables_of_limits_agree() -> None:
    from ritornello import _core
    from ritornello.program import code

    for name in ("MOST_FIELDS", "MOST_SLOTS", "MOST_SPACES", "MOST_TERMS"):
        assert getattr(code, name) == getattr(_core, name)


def test_the_numpy_machine_knows_every_instruction() -> None:
    from ritornello import _core

    known = set(UNARY) | set(BINARY) | set(TERNARY) | {"expand", "uniform"}
    assert known == {name.partition(".")[0] for name in _core.op_names()}


def philox4x32(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Salmon et al. (2011), figure 2 and section 4.3, ten rounds, in Python's integers."""
    c, k, mask = list(counter), list(key), 0xFFFFFFFF
    for _ in range(10):
        first, second = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(second >> 32) ^ c[1] ^ k[0], second & mask, (first >> 32) ^ c[3] ^ k[1], first & mask]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    return c


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_the_oracle_of_chance_gives_the_published_numbers(counter: str, key: str, expected: str) -> None:
    """The known answers of the Random123 library (kat_vectors)."""
    words = [[int(word, 16) for word in text.split()] for text in (counter, key, expected)]
    assert philox4x32(words[0], words[1]) == words[2]


@given(
    st.integers(0, 2**62), st.integers(0, 2**40), st.integers(0, 2**31 - 1), st.sampled_from([1, 2, 3, 4, 5, 16, 33])
)
def test_philox_is_the_published_generator(seed: int, row: int, stream: int, size: int) -> None:
    found = philox(seed, torch.tensor([row]), stream, size)[0]
    quarter = -(-size // 4)
    counters = [
        philox4x32([j, stream, row & 0xFFFFFFFF, row >> 32], [seed & 0xFFFFFFFF, seed >> 32]) for j in range(quarter)
    ]
    expected = [counters[i % quarter][i // quarter] >> 8 for i in range(size)]
    assert (found * 2**24).tolist() == expected
    assert found.dtype == F64
