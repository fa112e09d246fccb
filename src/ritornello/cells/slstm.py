"""The scalar-memory LSTM of xLSTM."""

from __future__ import annotations

from collections import namedtuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ritornello.cells.cell import Cell
from ritornello.cells.initialise import add_to_gate_bias_, uniform_


class SLSTM(Cell):
    r"""Long short-term memory with exponential gates and a stabiliser.

    .. math::
        (z, i, f, o) &= W x + U h' + b \\
        m &= \max(\log \sigma(f) + m', i) & \hat{i} &= \exp(i - m) \qquad \hat{f} = \exp(\log \sigma(f) + m' - m) \\
        c &= \hat{f} \odot c' + \hat{i} \odot \tanh(z) & n &= \hat{f} \odot n' + \hat{i} \\
        h &= \sigma(o) \odot c / n

    Beck et al. (2024), "xLSTM: extended long short-term memory", eq. 8 to 17, one head. An input gate without upper
    bound can overrule all that is remembered; m, which cancels in c / n, keeps the exponentials in range.

    Args:
        input_size: features of x.
        hidden_size: features of each field of the state.
        forget_bias: added to the forget gate's bias at the start. Default 3.

    Shapes:
        x (rows, input_size); s.h, s.c, s.n, s.m (rows, hidden_size). Gates are stacked in the order of `gates`.
        Parameters: W.weight (4·hidden_size, input_size), W.bias (4·hidden_size), U.weight (4·hidden_size, hidden_size),
        each uniform in ±1/√hidden_size.

    Raises:
        ArgumentError: a size that is no positive integer.

    Example:
        >>> cell = SLSTM(3, 4)
        >>> cell(torch.zeros(2, 3), cell.zero_state(2, torch.zeros(()))).n.shape
        torch.Size([2, 4])
    """

    State = namedtuple("State", "h c n m")
    gates = ("z", "i", "f", "o")
    keeps, writes = ("f",), ("i",)

    def __init__(self, input_size: int, hidden_size: int, forget_bias: float = 3.0) -> None:
        super().__init__(input_size, hidden_size)
        self.W = nn.Linear(input_size, 4 * hidden_size)
        self.U = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        uniform_(self)
        add_to_gate_bias_(self, self.W.bias, "f", forget_bias)

    def forward(self, x: Tensor, s: State) -> State:
        z, i, f, o = (self.W(x) + self.U(s.h)).chunk(4, -1)
        kept = F.logsigmoid(f) + s.m
        m = torch.maximum(kept, i)
        i, f = torch.exp(i - m), torch.exp(kept - m)
        c = f * s.c + i * torch.tanh(z)
        n = f * s.n + i
        return self.State(torch.sigmoid(o) * c / n.clamp(min=1e-37), c, n, m)  # a first n may underflow
