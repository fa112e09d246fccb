"""Cells to measure that the library does not have: each is what a stranger would write, from its equations."""

from __future__ import annotations

from collections import namedtuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ritornello.cells import Cell


class PeepholeLSTM(Cell):
    r"""An LSTM whose gates see the memory (Gers & Schmidhuber 2000).

    .. math::
        i &= \sigma(W_i x + U_i h' + b_i + p_i \odot c') & f &= \sigma(W_f x + U_f h' + b_f + p_f \odot c') \\
        g &= \tanh(W_g x + U_g h' + b_g) & c &= f \odot c' + i \odot g \\
        o &= \sigma(W_o x + U_o h' + b_o + p_o \odot c) & h &= o \odot \tanh(c)
    """

    State = namedtuple("State", "h c")
    gates = ("i", "f", "g", "o")

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.W = nn.Linear(input_size, 4 * hidden_size)
        self.U = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.p = nn.Parameter(0.1 * torch.randn(3, hidden_size))

    def forward(self, x: Tensor, s: State) -> State:
        i, f, g, o = (self.W(x) + self.U(s.h)).chunk(4, -1)
        i, f = torch.sigmoid(i + self.p[0] * s.c), torch.sigmoid(f + self.p[1] * s.c)
        c = f * s.c + i * torch.tanh(g)
        return self.State(torch.sigmoid(o + self.p[2] * c) * torch.tanh(c), c)


class LayerNormLSTM(Cell):
    r"""An LSTM with layer normalisation (Ba, Kiros & Hinton 2016, eq. 20 to 22).

    .. math::
        (i, f, g, o) &= \mathrm{LN}(W x) + \mathrm{LN}(U h') + b \\
        c &= \sigma(f) \odot c' + \sigma(i) \odot \tanh(g) & h &= \sigma(o) \odot \tanh(\mathrm{LN}(c))
    """

    State = namedtuple("State", "h c")
    gates = ("i", "f", "g", "o")

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.W = nn.Linear(input_size, 4 * hidden_size, bias=False)
        self.U = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.norm_x = nn.LayerNorm(4 * hidden_size)  # its bias is b
        self.norm_h = nn.LayerNorm(4 * hidden_size, bias=False)
        self.norm_c = nn.LayerNorm(hidden_size)
        nn.init.constant_(self.norm_h.weight, 0.1)  # with 1 the loop amplifies: rounding errors, and gradients

    def forward(self, x: Tensor, s: State) -> State:
        i, f, g, o = (self.norm_x(self.W(x)) + self.norm_h(self.U(s.h))).chunk(4, -1)
        c = torch.sigmoid(f) * s.c + torch.sigmoid(i) * torch.tanh(g)
        return self.State(torch.sigmoid(o) * torch.tanh(self.norm_c(c)), c)


class CoupledLSTM(Cell):
    r"""An LSTM that forgets just what it writes anew (Greff et al. 2017, "CIFG").

    .. math::
        f &= \sigma(W_f x + U_f h' + b_f) & g &= \tanh(W_g x + U_g h' + b_g) & o &= \sigma(W_o x + U_o h' + b_o) \\
        c &= f \odot c' + (1 - f) \odot g & h &= o \odot \tanh(c)
    """

    State = namedtuple("State", "h c")
    gates = ("f", "g", "o")

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.W = nn.Linear(input_size, 3 * hidden_size)
        self.U = nn.Linear(hidden_size, 3 * hidden_size, bias=False)

    def forward(self, x: Tensor, s: State) -> State:
        f, g, o = (self.W(x) + self.U(s.h)).chunk(3, -1)
        f = torch.sigmoid(f)
        c = f * s.c + (1 - f) * torch.tanh(g)
        return self.State(torch.sigmoid(o) * torch.tanh(c), c)


class MultiplicativeLSTM(Cell):
    r"""An LSTM whose recurrent weights depend on the input (Krause, Lu, Murray & Renals 2016).

    .. math::
        m &= (W_m x) \odot (V h') \\
        (i, f, g, o) &= W x + U m + b \\
        c &= \sigma(f) \odot c' + \sigma(i) \odot \tanh(g) & h &= \sigma(o) \odot \tanh(c)
    """

    State = namedtuple("State", "h c")
    gates = ("i", "f", "g", "o", "m")

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.W = nn.Linear(input_size, 5 * hidden_size)
        self.V = nn.Linear(hidden_size, hidden_size, bias=False)
        self.U = nn.Linear(hidden_size, 4 * hidden_size, bias=False)

    def forward(self, x: Tensor, s: State) -> State:
        w, m = self.W(x).split((4 * self.hidden_size, self.hidden_size), -1)
        i, f, g, o = (w + self.U(m * self.V(s.h))).chunk(4, -1)
        c = torch.sigmoid(f) * s.c + torch.sigmoid(i) * torch.tanh(g)
        return self.State(torch.sigmoid(o) * torch.tanh(c), c)


class Ferry(Cell):
    r"""Made up for this benchmark, so that no kernel can know it: two memories, the slow one fed by the quick one.

    .. math::
        k &= \exp(-\mathrm{softplus}(W_k x + U_k h' + b_k)) & e &= \sigma(W_e x + U_e h' + b_e) \\
        a &= k \odot a' + (1 - k) \odot \tanh(W_n x + U_n h' + b_n) & d &= e \odot d' + (1 - e) \odot a \\
        h &= \sigma(W_o x + U_o h' + b_o) \odot (a - d) / \sqrt{1 + d^2}
    """

    State = namedtuple("State", "h a d")
    gates = ("k", "e", "n", "o")

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.W = nn.Linear(input_size, 4 * hidden_size)
        self.U = nn.Linear(hidden_size, 4 * hidden_size, bias=False)

    def forward(self, x: Tensor, s: State) -> State:
        k, e, n, o = (self.W(x) + self.U(s.h)).chunk(4, -1)
        k, e = torch.exp(-F.softplus(k)), torch.sigmoid(e)
        a = k * s.a + (1 - k) * torch.tanh(n)
        d = e * s.d + (1 - e) * a
        return self.State(torch.sigmoid(o) * (a - d) * torch.rsqrt(1 + d * d), a, d)
