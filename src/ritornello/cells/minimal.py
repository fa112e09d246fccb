"""The minimal gated unit."""

from __future__ import annotations

from collections import namedtuple

import torch
from torch import Tensor, nn

from ritornello.cells.cell import Cell
from ritornello.cells.initialise import add_to_gate_bias_, uniform_


class MinimalGatedUnit(Cell):
    r"""One gate alone: a GRU whose reset and update gate are the same.

    .. math::
        f &= \sigma(W_f x + U_f h' + b_f) \\
        n &= \tanh(W_n x + U_n (f \odot h') + b_n) & h &= (1 - f) \odot h' + f \odot n

    Zhou et al. (2016), "Minimal gated unit for recurrent neural networks", eq. 6 to 8. Two thirds of a GRU's weights,
    and close to it on their tasks; f is the share that is written.

    Args:
        input_size: features of x.
        hidden_size: features of h.
        forget_bias: taken from the gate's bias at the start, so that the memory is kept. Default 0.

    Shapes:
        x (rows, input_size), s.h (rows, hidden_size). Gates are stacked in the order of `gates`. Parameters: W.weight
        (2·hidden_size, input_size), W.bias (2·hidden_size), U.weight and V.weight (hidden_size, hidden_size), of f and
        of n, each uniform in ±1/√hidden_size.

    Raises:
        ArgumentError: a size that is no positive integer.

    Example:
        >>> cell = MinimalGatedUnit(3, 4)
        >>> cell(torch.zeros(2, 3), cell.zero_state(2, torch.zeros(()))).h.shape
        torch.Size([2, 4])
    """

    State = namedtuple("State", "h")
    gates = ("f", "n")
    recurrent = ("U.weight", "V.weight")
    writes = ("f",)

    def __init__(self, input_size: int, hidden_size: int, forget_bias: float = 0.0) -> None:
        super().__init__(input_size, hidden_size)
        self.W = nn.Linear(input_size, 2 * hidden_size)
        self.U = nn.Linear(hidden_size, hidden_size, bias=False)
        self.V = nn.Linear(hidden_size, hidden_size, bias=False)
        uniform_(self)
        add_to_gate_bias_(self, self.W.bias, "f", forget_bias)

    def forward(self, x: Tensor, s: State) -> State:
        wf, wn = self.W(x).chunk(2, -1)
        f = torch.sigmoid(wf + self.U(s.h))
        n = torch.tanh(wn + self.V(f * s.h))
        return self.State((1 - f) * s.h + f * n)
