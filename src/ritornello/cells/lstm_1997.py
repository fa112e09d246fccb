"""Long short-term memory as it was first."""

from __future__ import annotations

from collections import namedtuple

import torch
from torch import Tensor, nn

from ritornello.cells.cell import Cell, total
from ritornello.cells.initialise import uniform_


class LSTM1997(Cell):
    r"""Long short-term memory without a forget gate.

    .. math::
        i &= \sigma(W_i x + U_i h' + b_i) & g &= \tanh(W_g x + U_g h' + b_g) & o &= \sigma(W_o x + U_o h' + b_o) \\
        c &= c' + i \odot g & h &= o \odot \tanh(c)

    Hochreiter & Schmidhuber (1997), "Long short-term memory", with tanh for their g and h. The memory is only added to:
    its gradient neither vanishes nor explodes (the constant error carousel), and nothing is ever forgotten. For short
    sequences that begin anew; on endless ones the memory saturates, which is why `LSTM` has a forget gate.

    Args:
        input_size: features of x.
        hidden_size: features of h and of c.

    Shapes:
        x (rows, input_size); s.h, s.c (rows, hidden_size). Gates are stacked in the order of `gates`. Parameters:
        W.weight (3·hidden_size, input_size), W.bias (3·hidden_size), U.weight (3·hidden_size, hidden_size), each
        uniform in ±1/√hidden_size.

    Raises:
        ArgumentError: a size that is no positive integer.

    Example:
        >>> cell = LSTM1997(3, 4)
        >>> cell(torch.zeros(2, 3), cell.zero_state(2, torch.zeros(()))).c.shape
        torch.Size([2, 4])
    """

    State = namedtuple("State", "h c")
    gates = ("i", "g", "o")

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.W = nn.Linear(input_size, 3 * hidden_size)
        self.U = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        uniform_(self)

    def forward(self, x: Tensor, s: State) -> State:
        i, g, o = (self.W(x) + self.U(total(s.h))).chunk(3, -1)
        c = total(s.c) + torch.sigmoid(i) * torch.tanh(g)
        return self.State(torch.sigmoid(o) * torch.tanh(c), c)
