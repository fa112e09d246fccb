"""A step of each known cell as a careful person writes it for a loop; once, for torch and for JAX.

The loops are fair: the input product of all steps is one product before the loop, whatever else depends on the input or
on parameters alone leaves it too, and the gates' recurrent products are one.

o: the operations of torch or of JAX. w: the cell's parameters by name. p: what a step reads of `before`. s: the state.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from ritornello import cells
from ritornello.bench.cells import Ferry

Step = Callable[[Any, tuple[Any, ...]], tuple[Any, ...]]

TORCH = SimpleNamespace(
    sigmoid=torch.sigmoid,
    tanh=torch.tanh,
    exp=torch.exp,
    expm1=torch.expm1,
    sqrt=torch.sqrt,
    rsqrt=torch.rsqrt,
    softplus=F.softplus,
    linear=F.linear,
    chunk=lambda value, count: value.chunk(count, -1),
    parts=lambda value, size: value.split((size, value.shape[-1] - size), -1),
    concatenate=torch.cat,
    zeros_like=torch.zeros_like,
    norm=lambda value, gain, bias=None: F.layer_norm(value, gain.shape, gain, bias),
)


def before(o: Any, w: dict[str, Any], x: Any, cell: Any) -> Any:
    """What of a step needs no state, for all rows at once."""
    p = o.linear(x, w["W.weight"], w.get("W.bias"))
    if "norm_x.weight" in w:
        p = o.norm(p, w["norm_x.weight"], w["norm_x.bias"])
    gates = GATES.get(type(cell))
    return p if gates is None else o.concatenate(gates(o, w, p, x), -1)


def elman(o: Any, w: dict[str, Any]) -> Step:
    U = w["U.weight"]

    def step(p: Any, s: tuple) -> tuple:
        return (o.tanh(p + o.linear(s[0], U)),)

    return step


def gru_after(o: Any, w: dict[str, Any]) -> Step:
    U, d = w["U.weight"], w["d"]
    bias = o.concatenate([o.zeros_like(d), o.zeros_like(d), d])

    def step(p: Any, s: tuple) -> tuple:
        (h,) = s
        wr, wz, wn = o.chunk(p, 3)
        ur, uz, un = o.chunk(o.linear(h, U, bias), 3)
        r, z = o.sigmoid(wr + ur), o.sigmoid(wz + uz)
        n = o.tanh(wn + r * un)
        return (n + z * (h - n),)

    return step


def gru_before(o: Any, w: dict[str, Any]) -> Step:
    U, d = w["U.weight"], w["d"]
    gates, candidate = U[: 2 * len(d)], U[2 * len(d) :]

    def step(p: Any, s: tuple) -> tuple:
        (h,) = s
        wr, wz, wn = o.chunk(p, 3)
        ur, uz = o.chunk(o.linear(h, gates), 2)
        r, z = o.sigmoid(wr + ur), o.sigmoid(wz + uz)
        n = o.tanh(wn + o.linear(r * h, candidate, d))
        return (n + z * (h - n),)

    return step


def lstm(o: Any, w: dict[str, Any]) -> Step:
    U = w["U.weight"]

    def step(p: Any, s: tuple) -> tuple:
        i, f, g, out = o.chunk(p + o.linear(s[0], U), 4)
        c = o.sigmoid(f) * s[1] + o.sigmoid(i) * o.tanh(g)
        return o.sigmoid(out) * o.tanh(c), c

    return step


def peephole(o: Any, w: dict[str, Any]) -> Step:
    U, (pi, pf, po) = w["U.weight"], w["p"]

    def step(p: Any, s: tuple) -> tuple:
        h, c = s
        i, f, g, out = o.chunk(p + o.linear(h, U), 4)
        c = o.sigmoid(f + pf * c) * c + o.sigmoid(i + pi * c) * o.tanh(g)
        return o.sigmoid(out + po * c) * o.tanh(c), c

    return step


def layer_norm(o: Any, w: dict[str, Any]) -> Step:
    U, gain, gain_c, bias_c = w["U.weight"], w["norm_h.weight"], w["norm_c.weight"], w["norm_c.bias"]

    def step(p: Any, s: tuple) -> tuple:
        i, f, g, out = o.chunk(p + o.norm(o.linear(s[0], U), gain), 4)
        c = o.sigmoid(f) * s[1] + o.sigmoid(i) * o.tanh(g)
        return o.sigmoid(out) * o.tanh(o.norm(c, gain_c, bias_c)), c

    return step


def coupled(o: Any, w: dict[str, Any]) -> Step:
    U = w["U.weight"]

    def step(p: Any, s: tuple) -> tuple:
        f, g, out = o.chunk(p + o.linear(s[0], U), 3)
        g = o.tanh(g)
        c = g + o.sigmoid(f) * (s[1] - g)
        return o.sigmoid(out) * o.tanh(c), c

    return step


def multiplicative(o: Any, w: dict[str, Any]) -> Step:
    U, V = w["U.weight"], w["V.weight"]

    def step(p: Any, s: tuple) -> tuple:
        h, c = s
        p, m = o.parts(p, len(U))
        i, f, g, out = o.chunk(p + o.linear(m * o.linear(h, V), U), 4)
        c = o.sigmoid(f) * c + o.sigmoid(i) * o.tanh(g)
        return o.sigmoid(out) * o.tanh(c), c

    return step


def ferry(o: Any, w: dict[str, Any]) -> Step:
    U = w["U.weight"]

    def step(p: Any, s: tuple) -> tuple:
        h, a, d = s
        k, e, n, out = o.chunk(p + o.linear(h, U), 4)
        n = o.tanh(n)
        a = n + o.exp(-o.softplus(k)) * (a - n)
        d = a + o.sigmoid(e) * (d - a)
        return o.sigmoid(out) * (a - d) * o.rsqrt(1 + d * d), a, d

    return step


def min_gru_gates(o: Any, w: dict[str, Any], p: Any, x: Any) -> list[Any]:
    z, n = o.chunk(p, 2)
    z = o.sigmoid(z)
    return [1 - z, z * n]


def min_lstm_gates(o: Any, w: dict[str, Any], p: Any, x: Any) -> list[Any]:
    f, i, n = o.chunk(p, 3)
    kept = o.sigmoid(o.softplus(-i) - o.softplus(-f))
    return [kept, (1 - kept) * n]


def rg_lru_gates(o: Any, w: dict[str, Any], p: Any, x: Any) -> list[Any]:
    r, i, n = o.chunk(p, 3)
    log_a = -8 * o.softplus(w["Lambda"]) * o.sigmoid(r)
    return [o.exp(log_a), o.sqrt(-o.expm1(2 * log_a)) * (o.sigmoid(i) * n)]


def sru_gates(o: Any, w: dict[str, Any], p: Any, x: Any) -> list[Any]:
    n, f, r = o.chunk(p, 3)
    f, r = o.sigmoid(f), o.sigmoid(r)
    return [f, (1 - f) * n, r, (1 - r) * x]


def scan(o: Any, w: dict[str, Any]) -> Step:
    def step(p: Any, s: tuple) -> tuple:
        a, b = o.chunk(p, 2)
        return (a * s[0] + b,)

    return step


def sru(o: Any, w: dict[str, Any]) -> Step:
    def step(p: Any, s: tuple) -> tuple:
        f, b, r, past = o.chunk(p, 4)
        c = f * s[1] + b
        return r * c + past, c

    return step


def step_of(cell: Any) -> Callable[[Any, dict[str, Any]], Step] | None:
    """The careful step of a cell; None for one that is not known here, whose loop calls the cell itself."""
    if type(cell) is cells.GRU:
        usual = cell.update == "keep" and cell.d is not None
        return {"after": gru_after, "before": gru_before}[cell.reset] if usual else None
    if type(cell) is cells.Elman and cell.nonlinearity != "tanh":
        return None
    if type(cell) is cells.PeepholeLSTM and cell.peephole != "vectors":
        return None
    if type(cell) is cells.SRU and (cell.v is not None or len(cell.gates) != 3):
        return None
    return STEPS.get(type(cell))


STEPS: dict[type, Callable[[Any, dict[str, Any]], Step]] = {
    cells.Elman: elman,
    cells.LSTM: lstm,
    cells.PeepholeLSTM: peephole,
    cells.LayerNormLSTM: layer_norm,
    cells.CoupledLSTM: coupled,
    cells.MultiplicativeLSTM: multiplicative,
    Ferry: ferry,
    cells.MinGRU: scan,
    cells.MinLSTM: scan,
    cells.RGLRU: scan,
    cells.SRU: sru,
}
GATES: dict[type, Callable[..., list[Any]]] = {
    cells.MinGRU: min_gru_gates,
    cells.MinLSTM: min_lstm_gates,
    cells.RGLRU: rg_lru_gates,
    cells.SRU: sru_gates,
}
