"""Long short-term memory with coupled gates."""

from __future__ import annotations

from collections import namedtuple

import torch
from torch import Tensor, nn

from ritornello.cells.cell import Cell
from ritornello.cells.initialise import add_to_gate_bias_, uniform_


class CoupledLSTM(Cell):
    r"""Long short-term memory that forgets just what it writes anew.

    .. math::
        f &= \sigma(W_f x + U_f h' + b_f) & g &= \tanh(W_g x + U_g h' + b_g) & o &= \sigma(W_o x + U_o h' + b_o) \\
        c &= f \odot c' + (1 - f) \odot g & h &= o \odot \tanh(c)

    Greff et al. (2017), "LSTM: a search space odyssey", the variant CIFG, without its peepholes. Three quarters of an
    LSTM's products, a memory that stays within ±1, and as good in their comparison.

    Args:
        input_size: features of x.
        hidden_size: features of h and of c.
        forget_bias: added to the forget gate's bias at the start. Default 1.

    Shapes:
        x (rows, input_size); s.h, s.c (rows, hidden_size). Gates are stacked in the order of `gates`. Parameters:
        W.weight (3·hidden_size, input_size), W.bias (3·hidden_size), U.weight (3·hidden_size, hidden_size), each
        uniform in ±1/√hidden_size.

    Raises:
        ArgumentError: a size that is no positive integer.

    Example:
        >>> cell = CoupledLSTM(3, 4)
        >>> cell(torch.zeros(2, 3), cell.zero_state(2, torch.zeros(()))).c.shape
        torch.Size([2, 4])
    """

    State = namedtuple("State", "h c")
    gates = ("f", "g", "o")
    keeps = ("f",)

    def __init__(self, input_size: int, hidden_size: int, forget_bias: float = 1.0) -> None:
        super().__init__(input_size, hidden_size)
        self.W = nn.Linear(input_size, 3 * hidden_size)
        self.U = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        uniform_(self)
        add_to_gate_bias_(self, self.W.bias, "f", forget_bias)

    def forward(self, x: Tensor, s: State) -> State:
        f, g, o = (self.W(x) + self.U(s.h)).chunk(3, -1)
        f = torch.sigmoid(f)
        c = f * s.c + (1 - f) * torch.tanh(g)
        return self.State(torch.sigmoid(o) * torch.tanh(c), c)
