"""Long short-term memory with layer normalisation."""

from __future__ import annotations

from collections import namedtuple

import torch
from torch import Tensor, nn

from ritornello.cells.cell import Cell
from ritornello.cells.initialise import uniform_


class LayerNormLSTM(Cell):
    r"""Long short-term memory with layer normalisation.

    .. math::
        (i, f, g, o) &= \mathrm{LN}(W x) + \mathrm{LN}(U h') + b \\
        c &= \sigma(f) \odot c' + \sigma(i) \odot \tanh(g) & h &= \sigma(o) \odot \tanh(\mathrm{LN}(c))

    Ba, Kiros & Hinton (2016), "Layer normalization", eq. 20 to 22. Steadier training of long sequences and deep stacks,
    at a higher cost a step: sums over all units stand in the loop.

    Args:
        input_size: features of x.
        hidden_size: features of h and of c.
        forget_bias: of the forget gate at the start. Default 1.
        gain: of the recurrent norm at the start. Default 0.1: with 1 the loop amplifies rounding errors, and gradients.

    Shapes:
        x (rows, input_size); s.h, s.c (rows, hidden_size). Gates are stacked in the order of `gates` (torch's).
        Parameters: W.weight (4·hidden_size, input_size) and U.weight (4·hidden_size, hidden_size), uniform in
        ±1/√hidden_size; norm_x.weight, norm_x.bias (which is b), norm_h.weight (4·hidden_size); norm_c.weight,
        norm_c.bias (hidden_size).

    Raises:
        ArgumentError: a size that is no positive integer.

    Example:
        >>> cell = LayerNormLSTM(3, 4)
        >>> cell(torch.zeros(2, 3), cell.zero_state(2, torch.zeros(()))).c.shape
        torch.Size([2, 4])
    """

    State = namedtuple("State", "h c")
    gates = ("i", "f", "g", "o")
    keeps, writes = ("f",), ("i",)
    gate_bias = "norm_x.bias"

    def __init__(self, input_size: int, hidden_size: int, forget_bias: float = 1.0, gain: float = 0.1) -> None:
        super().__init__(input_size, hidden_size)
        self.W = nn.Linear(input_size, 4 * hidden_size, bias=False)
        self.U = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        uniform_(self)
        self.norm_x = nn.LayerNorm(4 * hidden_size)
        self.norm_h = nn.LayerNorm(4 * hidden_size, bias=False)
        self.norm_c = nn.LayerNorm(hidden_size)
        nn.init.constant_(self.norm_h.weight, gain)
        with torch.no_grad():
            self.norm_x.bias.chunk(4)[1].fill_(forget_bias)

    def forward(self, x: Tensor, s: State) -> State:
        i, f, g, o = (self.norm_x(self.W(x)) + self.norm_h(self.U(s.h))).chunk(4, -1)
        c = torch.sigmoid(f) * s.c + torch.sigmoid(i) * torch.tanh(g)
        return self.State(torch.sigmoid(o) * torch.tanh(self.norm_c(c)), c)
