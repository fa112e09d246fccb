"""The papers' equations in NumPy: for every cell of the catalogue and its options an oracle, one row at a time.

Legend: x (F,) the input; h, c, ... (H,) the predecessor's fields, in the order of the cell's `State`. Only parameters
are shared with the cells, by name, and cut by gate where `gates` says that they are stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from twins import segments

from ritornello.cells import Cell

Array = np.ndarray
Fields = tuple[Array, ...]
tanh = np.tanh


def sigmoid(a: Array) -> Array:
    return 1 / (1 + np.exp(-a))


def softplus(a: Array) -> Array:
    return np.log(1 + np.exp(a))


def softmax(a: Array) -> Array:
    return np.exp(a) / np.exp(a).sum()


def relu(a: Array) -> Array:
    return np.maximum(0, a)


OUTPUTS: dict[str, Callable[[Array], Array]] = {"tanh": tanh, "sigmoid": sigmoid, "softmax": softmax}


class Parameters:
    """A cell's parameters as NumPy: `p["U.weight"]` whole, `p("U.weight", "ifgo")` cut into gates."""

    def __init__(self, cell: Cell) -> None:
        self.gates = cell.gates
        self.arrays = {name: value.detach().double().numpy() for name, value in cell.named_parameters()}

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]

    def __call__(self, name: str, gates: Sequence[str] = ()) -> dict[str, Array]:
        names = gates or self.gates
        return dict(zip(names, np.split(self[name], len(names)), strict=True))

    def layers(self, name: str) -> list[tuple[Array, Array]]:
        """Weight and bias of each of a list of linear layers."""
        count = sum(key.startswith(f"{name}.") and key.endswith("weight") for key in self.arrays)
        return [(self[f"{name}.{k}.weight"], self[f"{name}.{k}.bias"]) for k in range(count)]


# Simple networks.


def elman(p: Parameters, x: Array, h: Array, f: Callable[[Array], Array] = tanh) -> Fields:
    """Goodfellow, Bengio & Courville, eq. 10.8 and 10.9."""
    return (f(p["W.bias"] + p["U.weight"] @ h + p["W.weight"] @ x),)


def jordan(p: Parameters, x: Array, o: Array, f: Callable[[Array], Array] = lambda a: a) -> Fields:
    """Goodfellow, Bengio & Courville, figure 10.4."""
    h = tanh(p["W.weight"] @ x + p["R.weight"] @ o + p["W.bias"])
    return (f(p["V.weight"] @ h + p["V.bias"]),)


def elman_jordan(p: Parameters, x: Array, o: Array, h: Array, f: Callable[[Array], Array] = lambda a: a) -> Fields:
    h = tanh(p["W.weight"] @ x + p["U.weight"] @ h + p["R.weight"] @ o + p["W.bias"])
    return f(p["V.weight"] @ h + p["V.bias"]), h


def teacher_forced(p: Parameters, x: Array, o: Array, inner: Any, inputs: int) -> Fields:
    """Log-likelihood given the true outputs before: the input's last columns stand in for the output fed back."""
    p.arrays = {name.removeprefix("cell."): value for name, value in p.arrays.items()}
    return inner(p, x[:inputs], x[inputs:])


def leaky(p: Parameters, x: Array, h: Array) -> Fields:
    """Jaeger et al. (2007): the leaking rate is the share of the new."""
    alpha = sigmoid(p["a"])
    return ((1 - alpha) * h + alpha * tanh(p["W.weight"] @ x + p["U.weight"] @ h + p["W.bias"]),)


def additive(p: Parameters, x: Array, h: Array, c: Array) -> Fields:
    """c_t = θ c_{t-1} + θ_g g_t, h_t = tanh(c_t)."""
    g = tanh(p["W.weight"] @ x + p["U.weight"] @ h + p["W.bias"])
    c = sigmoid(p["a"]) * c + p["theta_g"] * g
    return tanh(c), c


def groups(p: Parameters, x: Array, h: Array, clock: Array, periods: Sequence[int]) -> Fields:
    """Koutník et al. (2014): W_H is block upper triangular, and only the rows of groups that are due are computed."""
    periods = periods[: len(h)]
    full, due = np.zeros((len(h), len(h))), np.zeros(len(h), bool)
    for g, units in enumerate(np.array_split(np.arange(len(h)), len(periods))):
        full[units, units[0] :] = p[f"U.{g}.weight"]
        due[units] = clock[g] == 0
    a = tanh(p["W.weight"] @ x + full @ h + p["W.bias"])
    return np.where(due, a, h), (clock - 1) % np.array(periods)


# Long short-term memory and its kin.


def lstm(p: Parameters, x: Array, h: Array, c: Array) -> Fields:
    """Tai, Socher & Manning (2015), eq. 2 to 8, over K predecessors; over one, the LSTM of Gers et al. (2000)."""
    w, u, b = p("W.weight"), p("U.weight"), p("W.bias")
    h_sum = h.sum(0)  # (2)
    i = sigmoid(w["i"] @ x + u["i"] @ h_sum + b["i"])  # (3)
    f = [sigmoid(w["f"] @ x + u["f"] @ h_k + b["f"]) for h_k in h]  # (4)
    o = sigmoid(w["o"] @ x + u["o"] @ h_sum + b["o"])  # (5)
    g = tanh(w["g"] @ x + u["g"] @ h_sum + b["g"])  # (6)
    c = i * g + sum(f_k * c_k for f_k, c_k in zip(f, c, strict=True))  # (7)
    return o * tanh(c), c  # (8)


def lstm_1997(p: Parameters, x: Array, h: Array, c: Array) -> Fields:
    """Hochreiter & Schmidhuber (1997): the memory's own weight is 1."""
    w, u, b = p("W.weight"), p("U.weight"), p("W.bias")
    i, o = (sigmoid(w[k] @ x + u[k] @ h + b[k]) for k in "io")
    c = c + i * tanh(w["g"] @ x + u["g"] @ h + b["g"])
    return o * tanh(c), c


def peephole(p: Parameters, x: Array, h: Array, c: Array, matrices: bool = False) -> Fields:
    """Graves (2013), eq. 7 to 11: diagonal peepholes, the output gate's on the new c."""
    w, u, b = p("W.weight"), p("U.weight"), p("W.bias")
    seen = {gate: weight if matrices else np.diag(weight) for gate, weight in zip("ifo", p["p"], strict=True)}
    i = sigmoid(w["i"] @ x + u["i"] @ h + seen["i"] @ c + b["i"])
    f = sigmoid(w["f"] @ x + u["f"] @ h + seen["f"] @ c + b["f"])
    c = f * c + i * tanh(w["g"] @ x + u["g"] @ h + b["g"])
    o = sigmoid(w["o"] @ x + u["o"] @ h + seen["o"] @ c + b["o"])
    return o * tanh(c), c


def coupled(p: Parameters, x: Array, h: Array, c: Array) -> Fields:
    """Greff et al. (2017), CIFG: i = 1 - f."""
    w, u, b = p("W.weight"), p("U.weight"), p("W.bias")
    f, o = (sigmoid(w[k] @ x + u[k] @ h + b[k]) for k in "fo")
    i = 1 - f
    c = f * c + i * tanh(w["g"] @ x + u["g"] @ h + b["g"])
    return o * tanh(c), c


def projected(p: Parameters, x: Array, r: Array, c: Array) -> Fields:
    """Sak, Senior & Beaufays (2014): m = o ⊙ tanh(c), r = W_rm m, and the gates read r."""
    w, u, b = p("W.weight"), p("U.weight"), p("W.bias")
    i, f, o = (sigmoid(w[k] @ x + u[k] @ r + b[k]) for k in "ifo")
    c = f * c + i * tanh(w["g"] @ x + u["g"] @ r + b["g"])
    return p["V.weight"] @ (o * tanh(c)), c


def layer_norm(p: Parameters, x: Array, h: Array, c: Array) -> Fields:
    """Ba, Kiros & Hinton (2016), eq. 20 to 22; torch adds 1e-5 to the variance."""

    def norm(a: Array, gain: Array) -> Array:
        return gain * (a - a.mean()) / np.sqrt(a.var() + 1e-5)

    a = norm(p["U.weight"] @ h, p["norm_h.weight"]) + norm(p["W.weight"] @ x, p["norm_x.weight"]) + p["norm_x.bias"]
    i, f, g, o = np.split(a, 4)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(norm(c, p["norm_c.weight"]) + p["norm_c.bias"]), c


def slstm(p: Parameters, x: Array, h: Array, c: Array, n: Array, m: Array, exponential: bool = False) -> Fields:
    """Beck et al. (2024), eq. 8 to 14, without the stabiliser: h is the same, and c and n are times exp(m)."""
    w, u, b = p("W.weight"), p("U.weight"), p("W.bias")
    z = tanh(w["z"] @ x + u["z"] @ h + b["z"])
    i = np.exp(w["i"] @ x + u["i"] @ h + b["i"])
    f, o = (gate(w[k] @ x + u[k] @ h + b[k]) for k, gate in (("f", np.exp if exponential else sigmoid), ("o", sigmoid)))
    c, n = (np.exp(m) * field for field in (c, n))
    c, n = f * c + i * z, f * n + i
    m = np.maximum(np.log(f) + m, np.log(i))  # (15)
    return o * c / n, np.exp(-m) * c, np.exp(-m) * n, m


# Gated recurrent units.


def gru(p: Parameters, x: Array, h: Array, before: bool = False, write: bool = False, bias: bool = True) -> Fields:
    """Cho et al. (2014): reset before, and keep; Chung et al. (2014): write. Over K predecessors, an r for each."""
    w, u = p("W.weight"), p("U.weight")
    b = p("W.bias") if bias else dict.fromkeys("rzn", 0.0)
    d = p["d"] if bias else 0.0
    r = [sigmoid(w["r"] @ x + u["r"] @ h_k + b["r"]) for h_k in h]
    z = sigmoid(w["z"] @ x + u["z"] @ h.sum(0) + b["z"])
    if before:
        recurrent = u["n"] @ sum(r_k * h_k for r_k, h_k in zip(r, h, strict=True)) + d
    else:
        recurrent = sum(r_k * (u["n"] @ h_k + d) for r_k, h_k in zip(r, h, strict=True))
    n = tanh(w["n"] @ x + b["n"] + recurrent)
    kept = 1 - z if write else z
    return ((1 - kept) * n + kept * h.sum(0),)


def minimal(p: Parameters, x: Array, h: Array) -> Fields:
    """Zhou et al. (2016)."""
    w, b = p("W.weight"), p("W.bias")
    f = sigmoid(w["f"] @ x + p["U.weight"] @ h + b["f"])
    n = tanh(w["n"] @ x + p["V.weight"] @ (f * h) + b["n"])
    return ((1 - f) * h + f * n,)


# Multiplicative and deep transitions.


def tensor(p: Parameters, x: Array, h: Array) -> Fields:
    """Sutskever, Martens & Hinton (2011): a recurrent matrix for each feature of the input, and one for all."""
    by_input = p["U.weight"] + sum(p["u"][:, k] * x[k] for k in range(len(x)))
    return (tanh(p["W.weight"] @ x + by_input @ h + p["W.bias"]),)


def multiplicative_rnn(p: Parameters, x: Array, h: Array) -> Fields:
    """The same, factored: W_hf diag(W_fx x) W_fh."""
    by_input = p["U.weight"] @ np.diag(p["F.weight"] @ x) @ p["V.weight"]
    return (tanh(p["W.weight"] @ x + by_input @ h + p["W.bias"]),)


def multiplicative_lstm(p: Parameters, x: Array, h: Array, c: Array) -> Fields:
    """Krause et al. (2016)."""
    w, b, u = p("W.weight"), p("W.bias"), p("U.weight", "ifgo")
    m = (w["m"] @ x + b["m"]) * (p["V.weight"] @ h)
    i, f, o = (sigmoid(w[k] @ x + u[k] @ m + b[k]) for k in "ifo")
    c = f * c + i * tanh(w["g"] @ x + u["g"] @ m + b["g"])
    return o * tanh(c), c


def deep(p: Parameters, x: Array, h: Array, shortcut: bool = True) -> Fields:
    """Pascanu et al. (2014): deep input, deep transition with a shortcut to the last layer."""
    for weight, bias in p.layers("input"):
        x = tanh(weight @ x + bias)
    s = tanh(p["W.weight"] @ x + p["U.weight"] @ h + p["W.bias"])
    layers = p.layers("transition")
    for number, (weight, bias) in enumerate(layers, 1):
        past = p["S.weight"] @ h if shortcut and number == len(layers) else 0
        s = tanh(weight @ s + bias + past)
    return (s,)


def deep_output(p: Parameters, x: Array, y: Array, h: Array) -> Fields:
    """With layers above: what is handed on is h, not the output."""
    (h,) = deep(p, x, h)
    y = h
    for weight, bias in p.layers("output"):
        y = tanh(weight @ y + bias)
    return y, h


def highway(p: Parameters, x: Array, h: Array) -> Fields:
    """Zilly et al. (2017), eq. 6 to 9, with c = 1 - t."""
    w, s = p("W.weight"), h
    for layer in range(len(p.layers("R"))):
        r, b = p(f"R.{layer}.weight"), p(f"R.{layer}.bias")
        first = layer == 0
        n = tanh(w["n"] @ x * first + r["n"] @ s + b["n"])
        t = sigmoid(w["t"] @ x * first + r["t"] @ s + b["t"])
        s = n * t + s * (1 - t)
    return (s,)


# Networks that are linear in their state, or nearly.


def qrnn(p: Parameters, x: Array, h: Array, c: Array, v: Array) -> Fields:
    """Bradbury et al. (2017), eq. 2 with window 2, and fo-pooling, eq. 4; v is the half of x before."""
    w, b = p("W.weight"), p("W.bias")
    before = dict(zip(p.gates, np.split(v, 3), strict=True))
    z = tanh(before["z"] + w["z"] @ x + b["z"])
    f, o = (sigmoid(before[k] + w[k] @ x + b[k]) for k in "fo")
    c = f * c + (1 - f) * z
    return o * c, c, p["V.weight"] @ x


def sru(p: Parameters, x: Array, h: Array, c: Array, seen: bool = False) -> Fields:
    """Lei et al. (2018), eq. 1 to 4."""
    w, b = p("W.weight"), p("W.bias")
    v_f, v_r = p["v"] if seen else (0.0, 0.0)
    f = sigmoid(w["f"] @ x + v_f * c + b["f"])  # (1)
    r = sigmoid(w["r"] @ x + v_r * c + b["r"])  # (3)
    c = f * c + (1 - f) * (w["n"] @ x + b["n"])  # (2)
    past = w["x"] @ x + b["x"] if "x" in w else x
    return r * c + (1 - r) * past, c  # (4)


def min_gru(p: Parameters, x: Array, h: Array) -> Fields:
    """Feng et al. (2024), section 3.1."""
    w, b = p("W.weight"), p("W.bias")
    z = sigmoid(w["z"] @ x + b["z"])
    return ((1 - z) * h + z * (w["n"] @ x + b["n"]),)


def min_lstm(p: Parameters, x: Array, h: Array) -> Fields:
    """Feng et al. (2024), section 3.2, with normalised gates."""
    w, b = p("W.weight"), p("W.bias")
    f, i = (sigmoid(w[k] @ x + b[k]) for k in "fi")
    return (f / (f + i) * h + i / (f + i) * (w["n"] @ x + b["n"]),)


def lru(p: Parameters, x: Array, y: Array, s: Array) -> Fields:
    """Orvieto et al. (2023), with θ = 0 and γ = √(1 - λ²)."""
    decay = np.exp(-np.exp(p["nu"]))
    s = decay * s + np.sqrt(1 - decay**2) * (p["B.weight"] @ x)
    return p["C.weight"] @ s + p["D.weight"] @ x + p["D.bias"], s


def rg_lru(p: Parameters, x: Array, h: Array) -> Fields:
    """De et al. (2024), eq. 1 to 4: a = σ(-Λ) to the power 8 r."""
    w, b = p("W.weight"), p("W.bias")
    r, i = (sigmoid(w[k] @ x + b[k]) for k in "ri")
    a = sigmoid(-p["Lambda"]) ** (8 * r)
    return (a * h + np.sqrt(1 - a**2) * (i * (w["n"] @ x + b["n"])),)


# Cells for trees: the fields of all N children, (N, H), zeros where one is missing.


def recursive(p: Parameters, x: Array, h: Array, project: bool = True) -> Fields:
    return (tanh((p["V.weight"] @ x if project else x) + p["W.weight"] @ h.ravel() + p["W.bias"]),)


def recursive_tensor(p: Parameters, x: Array, h: Array, project: bool = True) -> Fields:
    s = h.ravel()
    product = np.array([s @ slice_ @ s for slice_ in p["T"]])
    return (tanh((p["V.weight"] @ x if project else x) + p["W.weight"] @ s + p["W.bias"] + product),)


def tree_lstm(p: Parameters, x: Array, h: Array, c: Array) -> Fields:
    w, b = p("W.weight"), p("W.bias")
    names = ["i", "g", "o", *(f"f{k}" for k in range(len(h)))]
    u = {  # U_gate^l: a matrix for each gate and child
        name: np.split(rows, len(h), 1) for name, rows in zip(names, np.split(p["U.weight"], len(names)), strict=True)
    }

    def below(gate: str) -> Array:
        return sum(u_l @ h_l for u_l, h_l in zip(u[gate], h, strict=True))

    i = sigmoid(w["i"] @ x + below("i") + b["i"])
    f = [sigmoid(w["f"] @ x + below(f"f{k}") + b["f"]) for k in range(len(h))]
    g = tanh(w["g"] @ x + below("g") + b["g"])
    o = sigmoid(w["o"] @ x + below("o") + b["o"])
    new = i * g + sum(f_k * c_k for f_k, c_k in zip(f, c, strict=True))
    return o * tanh(new), new


def tree_gru(p: Parameters, x: Array, h: Array) -> Fields:
    count, size = h.shape
    w, b = np.split(p["W.weight"], 3 + count), np.split(p["W.bias"], 3 + count)
    r = [sigmoid(w[0] @ x + b[0] + row) for row in np.split(p["R.weight"] @ h.ravel(), count)]
    n = tanh(w[1] @ x + b[1] + p["U.weight"] @ np.concatenate([r_k * h_k for r_k, h_k in zip(r, h, strict=True)]))
    candidates = np.stack([n, *h])
    scores = (p["Z.weight"] @ candidates.ravel()).reshape(count + 1, size)
    scores += np.stack([w_k @ x + b_k for w_k, b_k in zip(w[2:], b[2:], strict=True)])
    z = np.exp(scores) / np.exp(scores).sum(0)
    return ((z * candidates).sum(0),)


class Oracle(NamedTuple):
    """One step of a cell.

    Args:
        equations: of the parameters, x and the predecessor's fields.
        predecessors: what the equations read of K of them: their "sum", "each" (fields (K, H)), or "one", which is all
            that there may be.
    """

    equations: Callable[..., Fields]
    predecessors: str

    def __call__(self, cell: Cell, x: Array, *state: Array) -> Fields:
        """The new fields, from x (F,) and the fields (K, H) of K predecessors."""
        if self.predecessors == "sum":
            state = tuple(field.sum(0) for field in state)
        elif self.predecessors == "one":
            state = tuple(np.squeeze(field, 0) for field in state)
        return self.equations(Parameters(cell), x, *state)


def one(equations: Callable[..., Fields], **options: Any) -> Oracle:
    return Oracle(partial(equations, **options), "one")


def summed(equations: Callable[..., Fields], **options: Any) -> Oracle:
    return Oracle(partial(equations, **options), "sum")


def each(equations: Callable[..., Fields], **options: Any) -> Oracle:
    return Oracle(partial(equations, **options), "each")


ORACLES: dict[str, Oracle] = {
    "elman": summed(elman),
    "elman-relu": summed(elman, f=relu),
    "irnn": summed(elman, f=relu),
    "jordan": summed(jordan),
    **{f"jordan-{name}": summed(jordan, f=f) for name, f in OUTPUTS.items()},
    "elman-jordan": summed(elman_jordan),
    "elman-jordan-sizes": summed(elman_jordan, f=softmax),
    "teacher-forced": summed(teacher_forced, inner=jordan, inputs=1),
    "leaky": summed(leaky),
    "leaky-alike": summed(leaky),
    "additive": summed(additive),
    "groups": one(groups, periods=(1, 2)),
    "groups-others": one(groups, periods=(2, 3)),
    "groups-uneven": one(groups, periods=(1, 2, 3)),
    "lstm": each(lstm),
    "lstm-1997": summed(lstm_1997),
    "peephole": one(peephole),
    "peephole-matrices": one(peephole, matrices=True),
    "coupled": one(coupled),
    "projected": one(projected),
    "projected-wider": one(projected),
    "layer-norm": one(layer_norm),
    "slstm": one(slstm),
    "slstm-exponential": one(slstm, exponential=True),
    "gru": each(gru),
    "gru-before": each(gru, before=True),
    "gru-write": each(gru, write=True),
    "gru-before-write": each(gru, before=True, write=True),
    "gru-no-bias": each(gru, bias=False),
    "minimal": one(minimal),
    "tensor": one(tensor),
    "multiplicative-rnn": summed(multiplicative_rnn),
    "multiplicative-rnn-factors": summed(multiplicative_rnn),
    "multiplicative": one(multiplicative_lstm),
    "deep": summed(deep),
    "deep-1": summed(deep, shortcut=False),
    "deep-3": summed(deep),
    "deep-no-shortcut": summed(deep, shortcut=False),
    "deep-input": summed(deep),
    "deep-output": summed(deep_output),
    "highway": summed(highway),
    "highway-1": summed(highway),
    "qrnn": one(qrnn),
    "sru": one(sru),
    "sru-peephole": one(sru, seen=True),
    "sru-square": one(sru),
    "min-gru": summed(min_gru),
    "min-lstm": summed(min_lstm),
    "lru": summed(lru),
    "rg-lru": summed(rg_lru),
}


TREE_ORACLES: dict[str, Oracle] = {
    "recursive": each(recursive),
    "recursive-3": each(recursive),
    "recursive-identity": each(recursive, project=False),
    "recursive-tensor": each(recursive_tensor),
    "recursive-tensor-identity": each(recursive_tensor, project=False),
    "tree-lstm": each(tree_lstm),
    "tree-lstm-3": each(tree_lstm),
    "tree-gru": each(tree_gru),
    "tree-gru-3": each(tree_gru),
}


def over_tree(oracle: Oracle, cell: Cell, parents: Sequence[int], x: Array) -> list[Fields]:
    """The state of each node, by recursion from the root; what is missing is zero.

    Args:
        parents: of one tree; children have slots in their order.
        x: (nodes, features).
    """
    zeros = tuple(np.zeros(size) for size in cell.state_sizes)
    states: dict[int, Fields] = {}

    def visit(node: int) -> Fields:
        below = [visit(child) for child, parent in enumerate(parents) if parent == node]
        below += [zeros] * ((cell.slots or 1) - len(below))
        states[node] = oracle(cell, x[node], *(np.stack(field) for field in zip(*below, strict=True)))
        return states[node]

    visit(list(parents).index(-1))
    return [states[node] for node in range(len(parents))]


def unfold(
    oracle: Oracle,
    cell: Cell,
    x: Array,
    given: Sequence[Array],
    lengths: Sequence[int],
    resets: Array,
    reverse: bool = False,
) -> tuple[Fields, Fields]:
    """Each sequence by itself, step by step, as the engine promises; zeros are what a reset leaves.

    Args:
        x: (time, batch, features).
        given: fields (batch, size) of the state that is entered with.
        resets: (time, batch), before which steps the state is forgotten.

    Returns:
        The states of all steps, fields (time, batch, size), zero in the padding; and the last, fields (batch, size).
    """
    time, batch = x.shape[:2]
    states = tuple(np.zeros((time, batch, field.shape[1])) for field in given)
    last = tuple(field.copy() for field in given)
    for b in range(batch):
        runs = segments(lengths[b], resets[:, b].tolist())
        for number, (start, stop) in enumerate(runs[::-1] if reverse else runs):
            fresh = number > 0 or (resets[0, b] and not reverse)
            state = tuple(np.zeros_like(field[b]) if fresh else field[b] for field in given)
            for t in range(start, stop)[:: -1 if reverse else 1]:
                state = oracle(cell, x[t, b], *(field[None] for field in state))
                for place, field in zip(states, state, strict=True):
                    place[t, b] = field
            for place, field in zip(last, state, strict=True):
                place[b] = field
    return states, last
