"""The gated recurrent unit."""

from __future__ import annotations

from collections import namedtuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ritornello.cells.cell import Cell, total
from ritornello.cells.initialise import uniform_
from ritornello.errors import ArgumentError


class GRU(Cell):
    r"""The gated recurrent unit.

    .. math::
        r &= \sigma(W_r x + U_r h' + b_r) \qquad z = \sigma(W_z x + U_z h' + b_z) \\
        n &= \tanh(W_n x + b_n + r \odot (U_n h' + d)) && \text{reset="after"} \\
        n &= \tanh(W_n x + b_n + U_n (r \odot h') + d) && \text{reset="before"} \\
        h &= (1 - z) \odot n + z \odot h'

    with h' the predecessor's state, z the share that is kept (torch's convention). Cho et al. (2014) put the reset
    before the product; `torch.nn.GRU` and the vendors' kernels put it after. Over trees each predecessor has a reset
    gate of its own (and, with reset="after", a d), z reads the sum of the states, and h' in the last line is that
    sum. As good as the LSTM on most tasks, with three quarters of its products.

    Args:
        input_size: features of x.
        hidden_size: features of h.
        reset: "after" (default) or "before".

    Shapes:
        x (rows, input_size); s.h (rows, hidden_size). Gates are stacked in the order of `gates` (torch's).
        Parameters: W.weight (3·hidden_size, input_size), W.bias (3·hidden_size), U.weight (3·hidden_size, hidden_size),
        d (hidden_size), each uniform in ±1/√hidden_size.

    Raises:
        ArgumentError: a size that is no positive integer, or an unknown `reset`.

    Example:
        >>> cell = GRU(3, 4)
        >>> cell(torch.zeros(2, 3), cell.zero_state(2, torch.zeros(()))).h.shape
        torch.Size([2, 4])
    """

    State = namedtuple("State", "h")
    gates = ("r", "z", "n")

    def __init__(self, input_size: int, hidden_size: int, reset: str = "after") -> None:
        super().__init__(input_size, hidden_size)
        if reset not in ("after", "before"):
            raise ArgumentError(f"GRU: reset must be 'after' or 'before' the product, not {reset!r}.")
        self.reset = reset
        self.W = nn.Linear(input_size, 3 * hidden_size)
        self.U = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.d = nn.Parameter(torch.empty(hidden_size))
        uniform_(self)

    def forward(self, x: Tensor, s: State) -> State:
        wr, wz, wn = self.W(x).chunk(3, -1)
        if self.reset == "after":
            ur, uz, un = self.U(s.h).chunk(3, -1)
            r = torch.sigmoid(wr + ur)
            n = torch.tanh(wn + total(r * (un + self.d)))
        else:
            gates, candidate = self.U.weight.split((2 * self.hidden_size, self.hidden_size))
            ur, uz = F.linear(s.h, gates).chunk(2, -1)
            r = torch.sigmoid(wr + ur)
            n = torch.tanh(wn + F.linear(total(r * s.h), candidate) + self.d)
        z = torch.sigmoid(wz + total(uz))
        return self.State((1 - z) * n + z * total(s.h))
