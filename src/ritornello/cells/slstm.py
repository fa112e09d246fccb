"""The scalar-memory LSTM of xLSTM."""

from __future__ import annotations

from collections import namedtuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ritornello.cells.cell import Cell
from ritornello.cells.initialise import add_to_gate_bias_, uniform_
from ritornello.errors import ArgumentError


class SLSTM(Cell):
    r"""Long short-term memory with exponential gates and a stabiliser.

    .. math::
        (z, i, f, o) &= W x + U h' + b \\
        \tilde{f} &= \log \sigma(f) \text{ or } f & m &= \max(\tilde{f} + m', i) \\
        \hat{i} &= \exp(i - m) & \hat{f} &= \exp(\tilde{f} + m' - m) \\
        c &= \hat{f} \odot c' + \hat{i} \odot \tanh(z) & n &= \hat{f} \odot n' + \hat{i} \\
        h &= \sigma(o) \odot c / n

    Beck et al. (2024), "xLSTM: extended long short-term memory", eq. 8 to 17, one head. An input gate without upper
    bound can overrule all that is remembered; m, which cancels in c / n, keeps the exponentials in range. c, n and m
    have a meaning together only: a state is one that the cell gave, or zeros.

    Args:
        input_size: features of x.
        hidden_size: features of each field of the state.
        forget_bias: added to the forget gate's bias at the start. Default 3.
        forget: the forget gate, "sigmoid" (default), or "exponential" as the input gate is.

    Shapes:
        x (rows, input_size); s.h, s.c, s.n, s.m (rows, hidden_size). Gates are stacked in the order of `gates`.
        Parameters: W.weight (4·hidden_size, input_size), W.bias (4·hidden_size), U.weight (4·hidden_size, hidden_size),
        each uniform in ±1/√hidden_size.

    Raises:
        ArgumentError: a size that is no positive integer, or an unknown forget gate.

    Example:
        >>> cell = SLSTM(3, 4)
        >>> cell(torch.zeros(2, 3), cell.zero_state(2, torch.zeros(()))).n.shape
        torch.Size([2, 4])
    """

    State = namedtuple("State", "h c n m")
    private = ("c", "n", "m")
    gates = ("z", "i", "f", "o")
    keeps, writes = ("f",), ("i",)

    def __init__(self, input_size: int, hidden_size: int, forget_bias: float = 3.0, forget: str = "sigmoid") -> None:
        super().__init__(input_size, hidden_size)
        if forget not in ("sigmoid", "exponential"):
            raise ArgumentError(f"SLSTM: forget must be 'sigmoid' or 'exponential', not {forget!r}.")
        self.forget = forget
        self.W = nn.Linear(input_size, 4 * hidden_size)
        self.U = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        uniform_(self)
        add_to_gate_bias_(self, self.W.bias, "f", forget_bias)

    def forward(self, x: Tensor, s: State) -> State:
        z, i, f, o = (self.W(x) + self.U(s.h)).chunk(4, -1)
        kept = (F.logsigmoid(f) if self.forget == "sigmoid" else f) + s.m
        m = torch.maximum(kept, i)
        i, f = torch.exp(i - m), torch.exp(kept - m)
        c = f * s.c + i * torch.tanh(z)
        n = f * s.n + i
        least = torch.finfo(n.dtype).tiny  # a first n may underflow
        return self.State(torch.sigmoid(o) * c / n.clamp(min=least), c, n, m)
