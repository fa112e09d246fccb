"""Cells as others publish them: each style of writing met in public repositories, with a cell of our own.

Every style is unfolded as it is and compared with its own Python loop, called the way its author would.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close, gradients
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import ritornello as rit
from ritornello.cells import Adapted
from ritornello.errors import ArgumentError
from ritornello.executors.cpu import MISSING, CpuExecutor, _core

F64 = torch.float64
X, H = 3, 4  # features of the input and of the state
needs_extension = pytest.mark.skipif(_core is None, reason=MISSING)

# How a cell is called by hand: (cell, x, fields) to (output, new fields).


def tensor(cell: nn.Module, x: Tensor, s: Sequence[Tensor]) -> Any:
    new = cell(x, s[0])
    return new, (new,)


def pair(cell: nn.Module, x: Tensor, s: Sequence[Tensor]) -> Any:
    new = cell(x, tuple(s))
    return new[0], new


def spread(cell: nn.Module, x: Tensor, s: Sequence[Tensor]) -> Any:
    new = cell(x, *s)
    return new[0], new


def beside(cell: nn.Module, x: Tensor, s: Sequence[Tensor]) -> Any:
    output, new = cell(x, s[0])
    return output, (new,)


def beside_pair(cell: nn.Module, x: Tensor, s: Sequence[Tensor]) -> Any:
    return cell(x, tuple(s))


def keras(cell: nn.Module, x: Tensor, s: Sequence[Tensor]) -> Any:
    return cell(x, list(s))


# The cells.


class Told(nn.Module):
    """Tells its sizes under the usual names, as most cells do."""

    def __init__(self, input_size: int = X, hidden_size: int = H) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size


class Linears(Told):
    """`nn.Linear` for each gate, one tensor of state."""

    def __init__(self) -> None:
        super().__init__()
        self.xf, self.hf = nn.Linear(X, H), nn.Linear(H, H, bias=False)
        self.xn, self.hn = nn.Linear(X, H), nn.Linear(H, H, bias=False)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        f = torch.sigmoid(self.xf(x) + self.hf(h))
        return f * h + (1 - f) * torch.tanh(self.xn(x) + self.hn(f * h))


class Parameters(Told):
    """Parameters by hand in torch's layout, `F.linear` and `chunk`, a pair of states."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.randn(4 * H, X))
        self.weight_hh = nn.Parameter(torch.randn(4 * H, H))
        self.bias = nn.Parameter(torch.randn(4 * H))
        self.peephole = nn.Parameter(torch.randn(H))

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = hx
        i, f, g, o = (F.linear(input, self.weight_ih, self.bias) + F.linear(h, self.weight_hh)).chunk(4, 1)
        c = (f + self.peephole * c).sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class Transposed(Told):
    """Weights (in, out), one product of everything joined, slices in place of `chunk`."""

    def __init__(self) -> None:
        super().__init__()
        self._W, self._b = nn.Parameter(torch.randn(X + H, 2 * H)), nn.Parameter(torch.zeros(1, 2 * H))
        self.zeta = nn.Parameter(torch.ones(1, 1))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        both = torch.mm(torch.cat([x, h], -1), self._W) + self._b
        z, c = both[:, :H].sigmoid(), both[:, H:].tanh()
        return z * h + (self.zeta.sigmoid() * (1.0 - z) + 0.01) * c


class Spread(nn.Module):
    """The state as arguments of their own, sizes under other names."""

    def __init__(self) -> None:
        super().__init__()
        self.ninp, self.nhid, self.dt = X, H, 0.5
        self.inp2hid, self.hid2hid = nn.Linear(X, 2 * H), nn.Linear(2 * H, H)

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.inp2hid(x).chunk(2, 1)
        z = z + self.dt * (torch.tanh(a + self.hid2hid(torch.cat((z, y), 1))) - b.sigmoid() * z)
        return y + self.dt * z, z


class Beside(Told):
    """An output of another size beside the new state."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.readout = nn.Linear(X + H, H), nn.Linear(H, 2)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.relu(self.inner(torch.cat((x, h), dim=-1)))
        return self.readout(h), h


class Plain(Told):
    """Scripted below: the output beside the pair that it is part of."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.U = nn.Parameter(torch.randn(3 * H, X)), nn.Parameter(torch.randn(3 * H, H))
        self.norm = nn.LayerNorm(H)

    def forward(self, input: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = state
        i, f, g = (torch.mm(input, self.W.t()) + torch.mm(h, self.U.t())).chunk(3, 1)
        c = self.norm(torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g))
        h = torch.tanh(c)
        return h, (h, c)


def script() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(Plain())


class Keras(nn.Module):
    """State in a list, activation by name, a layer norm if wanted, `state_size`."""

    def __init__(self, norm: bool = True, act: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self._inp_size, self._act = X, act
        self.layers = nn.Sequential(nn.Linear(X + H, 3 * H, bias=False))
        if norm:
            self.layers.add_module("norm", nn.LayerNorm(3 * H, eps=1e-3))

    @property
    def state_size(self) -> int:
        return H

    def forward(self, inputs: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        h = state[0]
        reset, cand, update = torch.split(self.layers(torch.cat([inputs, h], -1)), [H] * 3, -1)
        update = torch.sigmoid(update - 1)
        output = update * self._act(torch.sigmoid(reset) * cand) + (1 - update) * h
        return output, [output]


class Optional(Told):
    """A state that may be left out, and a mask that nobody gives."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(X + H, H)

    def forward(self, x: Tensor, h: Tensor | None = None, delayed: Tensor | None = None) -> Tensor:
        h = torch.zeros(x.size(0), self.hidden_size, dtype=x.dtype, device=x.device) if h is None else h
        delayed = torch.zeros_like(h) if delayed is None else delayed
        return torch.tanh(self.linear(torch.cat([x, h], 1)) + delayed @ self.linear.weight[:, X:].t())


class Four(nn.Module):
    """A small cell that steers a large one by `einsum`: four fields of two sizes, sizes not told."""

    def __init__(self) -> None:
        super().__init__()
        self.hyper = nn.LSTMCell(H + X, 2)
        self.scale = nn.ModuleList([nn.Linear(2, H) for _ in range(2)])
        self.w = nn.ParameterList([torch.randn(H, H), torch.randn(H, X)])
        self.norm = nn.LayerNorm(H)

    def forward(self, x: Tensor, h: Tensor, c: Tensor, h_hat: Tensor, c_hat: Tensor) -> tuple[Tensor, ...]:
        h_hat, c_hat = self.hyper(torch.cat((h, x), dim=-1), (h_hat, c_hat))
        y = self.scale[0](h_hat) * torch.einsum("ij,bj->bi", self.w[0], h)
        y = y + self.scale[1](h_hat) * torch.einsum("ij,bj->bi", self.w[1], x)
        c = 0.5 * c + torch.tanh(self.norm(y))
        return torch.sigmoid(c), c, h_hat, c_hat


class Depth(Told):
    """A loop inside the step (a recurrent highway)."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 3
        self.input_lin = nn.Linear(X, 2 * H, bias=False)
        self.hidden_lin = nn.ModuleList([nn.Linear(H, 2 * H) for _ in range(self.depth)])

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        for d in range(self.depth):
            hg = self.hidden_lin[d](s)
            if d == 0:
                hg = hg + self.input_lin(x)
            g = torch.sigmoid(hg[:, H:])
            s = torch.tanh(hg[:, :H]) * g + s * (1 - g)
        return s


class Stack(nn.Module):
    """Several cells over one state, which is cut between them; no size told."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.GRUCell(X, H), nn.GRUCell(H, H)])

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        new = []
        for layer, h in zip(self.layers, state.chunk(2, -1), strict=True):
            x = layer(x, h)
            new.append(x)
        return torch.cat(new, -1)


class Wrapped(Told):
    """`nn.LSTMCell` with something done before (a mogrifier) and after (zoneout)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.q, self.r = nn.LSTMCell(X, H), nn.Linear(H, X), nn.Linear(X, H)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor, prev_hc: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        if prev_hc is None:
            prev_hc = (x.new_zeros(len(x), H), x.new_zeros(len(x), H))
        h, c = prev_hc
        x = 2 * torch.sigmoid(self.q(h)) * x
        h_new, c_new = self.lstm(x, (2 * torch.sigmoid(self.r(x)) * h, c))
        if self.training:
            return 0.8 * self.dropout(h_new - h) + h, 0.8 * self.dropout(c_new - c) + c
        return 0.8 * h_new + 0.2 * h, 0.8 * c_new + 0.2 * c


class Norms(Told):
    """A layer norm of each gate in a ModuleList, and one by hand from mean and std."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(X + H, 2 * H, bias=False)
        self.norms = nn.ModuleList(nn.LayerNorm(H) for _ in range(2))
        self.gain = nn.Parameter(torch.ones(1, H))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        parts = self.linear(torch.cat([x, h], dim=1)).split(H, dim=1)
        f, g = (norm(part) for norm, part in zip(self.norms, parts, strict=True))
        new = torch.sigmoid(f) * h + torch.tanh(g)
        mean, std = new.mean(-1, keepdim=True), new.std(-1, keepdim=True, unbiased=False)
        return (new - mean.expand_as(new)) / (std + 1e-3) * self.gain.expand_as(new)


class Exponential(Told):
    """Exponential gates with a stabiliser: three fields."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Linear(X, 2 * H)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        c, n, m = state
        i, f = self.W(x).chunk(2, 1)
        new = torch.max(f + m, i)
        forget, inp = torch.exp(f + m - new), torch.exp(i - new)
        c, n = forget * c + inp * torch.tanh(i), forget * n + inp
        return c / (n + 1e-8), n, new


class Master(Told):
    """Cumulative softmax over chunks, a memory (chunks, size), and something else given back behind the state."""

    def __init__(self) -> None:
        super().__init__()
        self.ih, self.hh = nn.Linear(X, 2 * H + 2), nn.Linear(H, 2 * H + 2)

    def forward(self, x: Tensor, hidden: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, tuple[Tensor]]:
        h, c = hidden
        gates = self.ih(x) + self.hh(h)
        master = torch.cumsum(F.softmax(gates[:, :2], dim=-1), dim=-1)
        f, g = gates[:, 2:].view(-1, 4, 2).chunk(2, 1)
        distance = 1.0 - master.sum(dim=-1) / 2
        c = F.sigmoid(f) * master[:, :, None] * c + torch.tanh(g)
        return torch.tanh(c).view(-1, H), c, (distance,)


class Matrix(Told):
    """A matrix memory: written by an outer product, read by a product with a row."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.gate = (nn.Linear(X, H) for _ in range(4))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, memory = state
        q, k, v = self.q(x), self.k(x), self.v(x)
        f = torch.sigmoid(self.gate(x) + h).unsqueeze(2)
        memory = f * memory + torch.bmm(v.unsqueeze(2), k.unsqueeze(1))
        return torch.bmm(q.unsqueeze(1), memory).squeeze(1), memory


class Ode(nn.Module):
    """Synapses (sources, targets) broadcast over rows, some steps of a solver inside the step."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.units = X, H
        self._params = {"mu": nn.Parameter(torch.rand(H, H)), "sensory": nn.Parameter(torch.rand(X, H))}
        for name, parameter in self._params.items():
            self.register_parameter(name, parameter)

    def forward(self, inputs: Tensor, states: Tensor, elapsed: float = 1.0) -> tuple[Tensor, Tensor]:
        sensory = torch.sum(torch.sigmoid(inputs.unsqueeze(-1) - self._params["sensory"]), dim=1)
        for _ in range(2):
            active = torch.sigmoid(states.unsqueeze(-1) - self._params["mu"])
            states = (states + torch.sum(active, dim=1)) / (1 + elapsed / 2 + sensory)
        return states[:, 0:2], states


class Skew(Told):
    """A recurrent matrix made of a parameter and the identity at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.V = nn.Parameter(torch.randn(H, H)), nn.Linear(X, H)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        A = self.W - self.W.transpose(1, 0) - 0.1 * torch.eye(H, device=self.W.device, dtype=self.W.dtype)
        return h + 0.5 * torch.tanh(torch.matmul(h, A) + self.V(x))


class InPlace(Told):
    """Changes what it has just made in place."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.U = nn.Parameter(torch.randn(X, H)), nn.Parameter(torch.randn(H, H))
        self.b = nn.Parameter(torch.randn(1, H))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        new = torch.mm(x, self.W)
        new.addmm_(h, self.U)
        new.add_(self.b)
        return new.tanh_()


class Rolled(Told):
    """Fixed permutations in place of a matrix, and a clipped, `quantised` sigmoid from min and max."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Linear(X, H)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        mixed = torch.roll(h, 1, 1) + torch.flip(h, [1]) + h.view(-1, 2, 2).transpose(1, 2).reshape(-1, H)
        a = (self.W(x) + mixed + 1.0) / 2.0
        return torch.max(torch.min(a, torch.ones_like(a)), torch.zeros_like(a))


class Batched(Told):
    """Parameters spread over the batch by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_ih, self.weight_hh = nn.Parameter(torch.randn(X, H)), nn.Parameter(torch.randn(H, H))
        self.bias, self.leak = nn.Parameter(torch.randn(H)), nn.Parameter(torch.rand(H))

    def forward(self, input_: Tensor, hx: Tensor) -> Tensor:
        bias_batch = self.bias.unsqueeze(0).expand(hx.size(0), *self.bias.size())
        leak = self.leak.view(1, -1).repeat(input_.shape[0], 1)
        return leak * hx + torch.tanh(torch.addmm(bias_batch, hx, self.weight_hh) + torch.mm(input_, self.weight_ih))


class Fixed(nn.Module):
    """Matrices that are not learned, as buffers and as a plain attribute, and fields of two sizes."""

    A: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("A", torch.randn(2, 2, dtype=F64))
        self.B = torch.randn(2, 1, dtype=F64)
        self.e, self.W = nn.Linear(X + H, 1), nn.Linear(2 + X, H)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, m = state
        m = F.linear(m, self.A) + F.linear(self.e(torch.cat([x, h], 1)), self.B)
        return torch.tanh(self.W(torch.cat([m, x], 1))), m


class Previous(Told):
    """Keeps the input itself for the next step."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.before = nn.Linear(X, H), nn.Linear(X, H)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, previous = state
        return torch.sigmoid(self.before(previous)) * h + self.now(x), x


class Unsqueezed(Told):
    """Gives back (batch, 1, hidden)."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Linear(X + H, H)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        h = state.view(state.size(0), -1)
        return torch.tanh(self.W(torch.cat([x, h], 1))).view(x.size(0), 1, -1)


class Style(NamedTuple):
    """A cell, what must be said beside it, how its author calls it, and the shapes of its fields."""

    make: Callable[[], nn.Module]
    call: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    told: dict[str, Any] = {}  # noqa: RUF012


STYLES = {
    "linears": Style(Linears, tensor, ((H,),)),
    "parameters": Style(Parameters, pair, ((H,), (H,))),
    "transposed": Style(Transposed, tensor, ((H,),)),
    "spread": Style(Spread, spread, ((H,), (H,))),
    "beside": Style(Beside, beside, ((H,),)),
    "script": Style(script, beside_pair, ((H,), (H,))),
    "keras": Style(Keras, keras, ((H,),), {"input_size": X}),
    "callable": Style(lambda: Keras(False, F.elu), keras, ((H,),), {"input_size": X}),
    "optional": Style(Optional, tensor, ((H,),)),
    "four": Style(Four, spread, ((H,), (H,), (2,), (2,)), {"input_size": X, "state_sizes": (H, H, 2, 2)}),
    "depth": Style(Depth, tensor, ((H,),)),
    "stack": Style(Stack, tensor, ((2 * H,),), {"input_size": X, "state_sizes": 2 * H}),
    "wrapped": Style(lambda: Wrapped().eval(), pair, ((H,), (H,))),
    "norms": Style(Norms, tensor, ((H,),)),
    "exponential": Style(Exponential, pair, ((H,),) * 3),
    "master": Style(Master, lambda *a: (lambda new: (new[0], new[:2]))(a[0](a[1], tuple(a[2]))), ((H,), (2, 2)),
                    {"state_sizes": (H, (2, 2))}),
    "matrix": Style(Matrix, pair, ((H,), (H, H)), {"state_sizes": (H, (H, H))}),
    "ode": Style(Ode, beside, ((H,),)),
    "skew": Style(Skew, tensor, ((H,),)),
    "in place": Style(InPlace, tensor, ((H,),)),
    "rolled": Style(Rolled, tensor, ((H,),)),
    "batched": Style(Batched, tensor, ((H,),)),
    "fixed": Style(Fixed, pair, ((H,), (2,)), {"input_size": X, "state_sizes": (H, 2)}),
    "previous": Style(Previous, pair, ((H,), (X,)), {"state_sizes": (H, X)}),
    "unsqueezed": Style(Unsqueezed, tensor, ((H,),)),
}  # fmt: skip


def by_hand(style: Style, cell: nn.Module, x: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The author's loop: outputs, and the last fields, flattened."""
    fields = tuple(f.unflatten(1, shape) for f, shape in zip(state, style.shapes, strict=True))
    outputs = []
    for step in x:
        output, fields = style.call(cell, step, fields)
        outputs.append(output.flatten(1))
    return torch.stack(outputs), tuple(field.flatten(1) for field in fields)


def compare(style: Style, cell: nn.Module, executor: str, time: int = 4, rows: int = 3) -> None:
    """An unfolding with that executor against the author's loop: values, and gradients of everything."""
    unfold = rit.Unfold(cell, executor=executor, **style.told)
    x = torch.randn(time, rows, X, dtype=F64, requires_grad=True)
    state = [torch.rand(rows, torch.Size(shape).numel(), dtype=F64, requires_grad=True) for shape in style.shapes]
    known = {"x": x, **{f"s{k}": field for k, field in enumerate(state)}, **dict(cell.named_parameters())}
    expected = by_hand(style, cell, x, state)
    entry = tuple(state)
    if len(unfold.cell.State._fields) > len(state):
        entry = (torch.zeros(rows, unfold.output_size, dtype=F64), *state)
    outputs, last = unfold(x, entry)
    found = outputs, tuple(last)[-len(state) :]
    assert_close(found, expected)
    assert_close(gradients(found, known), gradients(expected, known))


@pytest.mark.parametrize(
    ("name", "executor"),
    [
        pytest.param(name, executor, marks=[needs_extension] if executor == "cpu" else [])
        for name in STYLES
        for executor in ("reference", "cpu")
    ],
)
def test_a_published_style_equals_its_author_s_loop(name: str, executor: str) -> None:
    style = STYLES[name]
    compare(style, style.make().to(F64), executor)


@needs_extension
@pytest.mark.parametrize("name", list(STYLES))
def test_any_number_of_rows(name: str) -> None:
    """Three and five are what a cell is traced with; one has broadcasting of its own."""
    cell = STYLES[name].make().to(F64)
    for rows in (1, 3, 5, 8):
        compare(STYLES[name], cell, "cpu", time=3, rows=rows)


def test_what_is_found_without_being_told() -> None:
    cell = Adapted(Spread())
    assert (cell.State._fields, cell.state_sizes, cell.input_size) == (("h", "c"), (H, H), X)
    assert "state as 2 arguments" in repr(cell)
    cell = Adapted(Beside())
    assert (cell.State._fields, cell.state_sizes, cell.output_size) == (("output", "h"), (2, H), 2)
    assert Adapted(Keras(), input_size=X).state_sizes == (H,)
    assert Adapted(Exponential()).State._fields == ("h", "c", "s2")
    cell = Adapted(Matrix(), state_sizes=(H, (H, H)))
    assert (cell.state_sizes, cell.hidden_size) == ((H, H * H), H)


def test_one_number_stands_for_any_count_of_fields() -> None:
    class Sizeless(Parameters):
        def __init__(self) -> None:
            super().__init__()
            del self.input_size, self.hidden_size

    assert Adapted(Sizeless(), X, H).state_sizes == (H, H)
    assert Adapted(nn.GRUCell(X, H), X, H).state_sizes == (H,)


def test_trial_calls_leave_the_module_and_the_generator_as_they_were() -> None:
    class Counting(Told):
        steps: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(X + H, H), nn.BatchNorm1d(H)
            self.register_buffer("steps", torch.zeros(()))

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            self.steps = self.steps + 1
            return self.norm(F.dropout(self.linear(torch.cat([x, h], 1))))

    cell = Counting()
    before, state = copy.deepcopy(cell.state_dict()), torch.get_rng_state()
    unfold = rit.Unfold(cell, executor="reference")
    for name, value in cell.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(torch.get_rng_state(), state)
    unfold(torch.randn(2, 3, X))
    assert cell.steps == 2


# What cannot be traced runs on the reference executor, and says so once.


class Branching(Linears):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        if h.sum() > 1:
            h = h / 2
        return super().forward(x, h)


class Asking(Linears):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return super().forward(x, h / self.hf.weight.abs().max().item())


class OverRows(Linears):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(H)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.norm(super().forward(x, h))


class Sorting(Linears):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return super().forward(x, h.sort(dim=1).values)


class Stopping(Linears):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        new = super().forward(x, h)
        return new + (torch.sign(new) - new).detach()


class Clipping(Linears):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        new = super().forward(x, h)
        new.register_hook(lambda g: g.clamp(-0.01, 0.01))
        return new


class Merging(Linears):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return super().forward(x, h) + h.mean(0, keepdim=True)


@needs_extension
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (
            Branching,
            r"a reduction over rows, which makes results depend on.*test_foreign.py, line \d+: if h.sum\(\) > 1",
        ),
        (
            Asking,
            r"asking for a number that depends on data.*test_foreign.py, line \d+: return super\(\).forward\(x, h / ",
        ),
        (OverRows, r"test_foreign.py, line \d+: return self.norm"),
        (Sorting, r"torch's sort.*test_foreign.py, line \d+: return super\(\).forward\(x, h.sort"),
        (Stopping, r"detach, or .data, which stops the gradient.*test_foreign.py, line \d+: return new \+"),
        (Clipping, "hook"),
        (Merging, r"a reduction over rows, which makes.*test_foreign.py, line \d+: return super"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_traced_runs_on_the_reference_executor_and_says_so_once(
    kind: type[nn.Module], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    cell = kind().to(F64)
    style = Style(kind, tensor, ((H,),))
    with caplog.at_level(logging.WARNING, logger="ritornello"):
        for _ in range(2):  # another unfolding of it, and another cell of its kind
            unfold = rit.Unfold(cell)
            for _ in range(2):
                unfold(torch.randn(2, 3, X, dtype=F64))
            cell = kind().to(F64)
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().endswith("it runs on the reference executor.")
    compare(style, kind().to(F64), "auto")
    with pytest.raises(ArgumentError, match=f"(?s)Executor 'cpu' cannot run this: .*{reason}"):
        rit.Unfold(cell, executor="cpu")(torch.randn(2, 3, X, dtype=F64))


class Sign(torch.autograd.Function):
    """A spike with a surrogate gradient."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return g / (1 + ctx.saved_tensors[0].abs()) ** 2


class Spiking(Linears):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return Sign.apply(super().forward(x, h))


class Unlearned(Linears):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        with torch.no_grad():
            gate = torch.sigmoid(self.xf(x))
        return gate * super().forward(x, h)


class PoliteClipping(Linears):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        new = super().forward(x, h)
        if new.requires_grad:
            new.register_hook(lambda g: g.clamp(-0.01, 0.01))
        return new


class Remembering(Linears):
    """Counts its steps in a buffer; the loop by hand begins where the unfolding began."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        self.steps = (self.steps + 1) % 4
        return super().forward(x, h) + self.steps


@needs_extension
@pytest.mark.parametrize("kind", [Spiking, Unlearned, PoliteClipping, Remembering])
def test_what_tracing_would_lose_is_kept(kind: type[nn.Module]) -> None:
    compare(Style(kind, tensor, ((H,),)), kind().to(F64), "auto", time=4)


def test_hooks_on_parameters_are_called() -> None:
    """They belong to the parameters, so any executor keeps them."""
    cell = Linears().to(F64)
    cell.hf.weight.register_hook(lambda g: g.clamp(-0.01, 0.01))
    compare(STYLES["linears"], cell, "auto")


# What is not understood.


class Timed(Told):
    def forward(self, x: Tensor, h: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
        new = torch.tanh(h + dt)
        return new, new


class Wide(Told):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.cat([x, h], 1)


class Silent(nn.Module):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return x + h


class HalfSilent(Silent):
    input_size = X


class Three(Told):
    def forward(self, x: Tensor, s: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        h, c = s
        return h, c, h, c


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (Silent(), {}, r"^Silent does not tell the size of its input; say input_size=\.\.\. beside it"),
        (HalfSilent(), {}, r"^HalfSilent does not tell the sizes of its state; say state_sizes=\.\.\. beside it"),
        (Timed(), {}, r"^Cannot call Timed as a cell, forward\(x, state\) with x of 3 features \(a tensor: TypeError: "
                      r".*missing 1 required positional argument: 'dt'"),
        (Timed(), {"state_sizes": (H, H)}, "2 arguments: .*it gave back one tensor twice, as an output and the new st"),
        (Wide(), {}, "a tensor: it gave back other shapes.*or derive a ritornello.Cell that calls it"),
        (Three(), {}, "a tuple of 2: ArgumentError: it gave back 4 values for a state of 2"),
        (nn.LSTMCell(X, H), {"state_sizes": (H,)}, "Cannot call LSTMCell as a cell"),
        (nn.LSTM(X, H), {}, r"^torch's LSTM is a whole layer, not a cell: take ritornello\.nn\.LSTM, .*"
                            rf"or ritornello\.Unfold\(ritornello\.LSTM\({X}, {H}\)\)\.$"),
        (nn.RNN(X, H), {}, r"take ritornello\.nn\.RNN, .* ritornello\.Unfold\(ritornello\.Elman\("),
        (rit.Unfold(rit.GRU(X, H)), {}, "^Unfold is a layer, unfolded already: call it as it is"),
        (rit.nn.Stack.of(rit.GRU, X, H), {}, "^Stack is a layer, unfolded already"),
        (rit.nn.LSTM(X, H), {}, "^LSTM is a layer, unfolded already"),
        (nn.GRUCell(X, H), {"input_size": 7}, "Cannot call GRUCell as a cell, .* with x of 7 features"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_told(module: nn.Module, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        rit.Unfold(module, **options)


# torch's own.

OWN = {"LSTM": (nn.LSTMCell, nn.LSTM), "GRU": (nn.GRUCell, nn.GRU), "RNN": (nn.RNNCell, nn.RNN)}
EXECUTORS = ["reference", pytest.param("cpu", marks=needs_extension)]


def alike(name: str) -> tuple[nn.Module, nn.Module]:
    """torch's cell and its layer, with the same weights."""
    cell, layer = (kind(X, H).to(F64) for kind in OWN[name])
    with torch.no_grad():
        for key, value in layer.named_parameters():
            value.copy_(getattr(cell, key.removesuffix("_l0")))
    return cell, layer


def both(name: str, unfold: rit.Unfold, layer: nn.Module, lengths: list[int]) -> tuple[Any, Any]:
    """Values and gradients of both over a ragged batch."""
    x = torch.randn(6, len(lengths), X, dtype=F64, requires_grad=True)
    outputs, last = unfold(x, lengths=lengths)
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    expected, final = layer(packed)
    expected, _ = pad_packed_sequence(expected, total_length=6)
    final = tuple(field.squeeze(0) for field in (final if name == "LSTM" else (final,)))
    ours = {"x": x, **{key.rpartition(".")[2]: value for key, value in unfold.named_parameters()}}
    theirs = {"x": x, **{key.removesuffix("_l0"): value for key, value in layer.named_parameters()}}
    one, other = (outputs, tuple(last)), (expected, final)
    return (one, gradients(one, ours)), (other, gradients(other, theirs))


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("lengths", [[6, 6, 6], [6, 1, 4]], ids=["dense", "ragged"])
@pytest.mark.parametrize("name", OWN)
def test_torch_s_cell_unfolded_is_torch_s_layer(name: str, lengths: list[int], executor: str) -> None:
    cell, layer = alike(name)
    found, expected = both(name, rit.Unfold(cell, executor=executor), layer, lengths)
    assert_close(found, expected)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", OWN)
def test_a_copy_of_torch_s_cell_is_alike_and_by_itself(name: str, executor: str) -> None:
    cell, layer = alike(name)
    unfold = rit.Unfold(cell, executor=executor)
    unfold(torch.randn(2, 1, X, dtype=F64))
    other = copy.deepcopy(unfold)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
    found, expected = both(name, other, layer, [6, 2])
    assert_close(found, expected)
    assert not unfold(torch.randn(2, 1, X, dtype=F64))[0].any()


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", OWN)
def test_a_state_dict_of_torch_s_cell_round_trips(name: str, executor: str) -> None:
    cell, layer = alike(name)
    saved = rit.Unfold(cell, executor=executor).state_dict()
    assert {key.rpartition(".")[2] for key in saved} == set(cell.state_dict())
    fresh = rit.Unfold(OWN[name][0](X, H).to(F64), executor=executor)
    assert fresh.load_state_dict(saved).missing_keys == []
    found, expected = both(name, fresh, layer, [3, 6])
    assert_close(found, expected)


@needs_extension
def test_plans_of_a_module_are_made_once() -> None:
    executor, cell = CpuExecutor(), Adapted(nn.LSTMCell(X, H))
    plan = executor.plan(cell, X, (H, H), torch.zeros(()))
    assert plan is executor.plan(cell, X, (H, H), torch.zeros(()))
    assert not isinstance(plan, str), plan


def test_trial_calls_leave_a_module_as_it_was() -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.norm = nn.GRUCell(X, H), nn.BatchNorm1d(H)
            self.calls, self.log, self.last, self.total = 0, [], None, torch.zeros(())

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            h = self.norm(self.cell(x, h))
            self.calls, self.last = self.calls + 1, h.detach()
            self.log.append(h.detach())
            self.total += 1
            return h

    module = Remembering()
    total, mean = module.total, module.norm.running_mean
    Adapted(module, X, H)
    assert (module.calls, module.log, module.last) == (0, [], None)
    assert module.total is total
    assert module.norm.running_mean is mean
    assert not total
    assert not mean.any()
