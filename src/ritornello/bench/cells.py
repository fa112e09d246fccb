"""A cell to measure that the library does not have: what a stranger would write, from its equations."""

from __future__ import annotations

from collections import namedtuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ritornello.cells import Cell


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
