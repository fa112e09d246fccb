"""Gated cells stripped of all that stands in a scan's way."""

from __future__ import annotations

from collections import namedtuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ritornello.cells.cell import Cell, total
from ritornello.cells.initialise import uniform_


class MinGRU(Cell):
    r"""A GRU whose gate and candidate read the input alone.

    .. math:: z = \sigma(W_z x + b_z) \qquad h = (1 - z) \odot h' + z \odot (W_n x + b_n)

    Feng, Tung, Ahmed, Bengio & Hajimirsadeghi (2024), "Were RNNs all we needed?", section 3.1. Linear in its state: all
    products are done at once, and what is left is a scan.

    Args:
        input_size: features of x.
        hidden_size: features of h.

    Shapes:
        x (rows, input_size), s.h (rows, hidden_size). Gates are stacked in the order of `gates`. Parameters: W.weight
        (2·hidden_size, input_size), W.bias (2·hidden_size), each uniform in ±1/√hidden_size.

    Raises:
        ArgumentError: a size that is no positive integer.

    Example:
        >>> cell = MinGRU(3, 4)
        >>> cell(torch.zeros(2, 3), cell.zero_state(2, torch.zeros(()))).h.shape
        torch.Size([2, 4])
    """

    State = namedtuple("State", "h")
    gates = ("z", "n")
    recurrent = ()
    writes = ("z",)

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.W = nn.Linear(input_size, 2 * hidden_size)
        uniform_(self)

    def forward(self, x: Tensor, s: State) -> State:
        z, n = self.W(x).chunk(2, -1)
        z = torch.sigmoid(z)
        return self.State((1 - z) * total(s.h) + z * n)


class MinLSTM(Cell):
    r"""An LSTM whose gates read the input alone and sum to 1.

    .. math::
        f &= \sigma(W_f x + b_f) \qquad i = \sigma(W_i x + b_i) \\
        h &= \frac{f}{f + i} \odot h' + \frac{i}{f + i} \odot (W_n x + b_n)

    Feng, Tung, Ahmed, Bengio & Hajimirsadeghi (2024), "Were RNNs all we needed?", section 3.2. Linear in its state, as
    `MinGRU`, whose arguments and errors it has.

    Shapes:
        x (rows, input_size), s.h (rows, hidden_size). Gates are stacked in the order of `gates`. Parameters: W.weight
        (3·hidden_size, input_size), W.bias (3·hidden_size), each uniform in ±1/√hidden_size.

    Example:
        >>> cell = MinLSTM(3, 4)
        >>> cell(torch.zeros(2, 3), cell.zero_state(2, torch.zeros(()))).h.shape
        torch.Size([2, 4])
    """

    State = namedtuple("State", "h")
    gates = ("f", "i", "n")
    recurrent = ()
    keeps, writes = ("f",), ("i",)

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.W = nn.Linear(input_size, 3 * hidden_size)
        uniform_(self)

    def forward(self, x: Tensor, s: State) -> State:
        f, i, n = self.W(x).chunk(3, -1)
        kept = torch.sigmoid(F.logsigmoid(f) - F.logsigmoid(i))  # f / (f + i), where both may be tiny
        return self.State(kept * total(s.h) + (1 - kept) * n)
