"""Long short-term memory."""

from __future__ import annotations

from collections import namedtuple

import torch
from torch import Tensor, nn

from ritornello.cells.cell import Cell, total
from ritornello.cells.initialise import add_to_gate_bias_, uniform_


class LSTM(Cell):
    r"""Long short-term memory, with a forget gate; over trees, the child-sum Tree-LSTM.

    .. math::
        i &= \sigma(W_i x + U_i h' + b_i) &
        f &= \sigma(W_f x + U_f h' + b_f) \\
        g &= \tanh(W_g x + U_g h' + b_g) &
        o &= \sigma(W_o x + U_o h' + b_o) \\
        c &= f \odot c' + i \odot g & h &= o \odot \tanh(c)

    with h', c' the predecessor's state. With several predecessors i, g and o read the sum of their h', and each
    predecessor has a forget gate of its own. Hochreiter & Schmidhuber (1997); forget gate by Gers et al. (2000);
    trees by Tai, Socher & Manning (2015), eq. 2 to 8. What to reach for first.

    Args:
        input_size: features of x.
        hidden_size: features of h and of c.
        forget_bias: added to the forget gate's bias at the start, 1 by default (Jozefowicz et al. 2015), so that
            the memory is kept until training says otherwise. 0 gives the initialisation of `torch.nn.LSTM`.

    Shapes:
        x (rows, input_size); s.h, s.c (rows, hidden_size). Gates are stacked in the order of `gates` (torch's).
        Parameters: W.weight (4·hidden_size, input_size), W.bias (4·hidden_size), U.weight (4·hidden_size, hidden_size),
        each uniform in ±1/√hidden_size.

    Raises:
        ArgumentError: a size that is no positive integer.

    Example:
        >>> cell = LSTM(3, 4)
        >>> state = cell(torch.zeros(2, 3), cell.zero_state(2, torch.zeros(())))
        >>> state.h.shape, state.c.shape
        (torch.Size([2, 4]), torch.Size([2, 4]))
    """

    State = namedtuple("State", "h c")
    gates = ("i", "f", "g", "o")
    keeps, writes = ("f",), ("i",)

    def __init__(self, input_size: int, hidden_size: int, forget_bias: float = 1.0) -> None:
        super().__init__(input_size, hidden_size)
        self.W = nn.Linear(input_size, 4 * hidden_size)
        self.U = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        uniform_(self)
        add_to_gate_bias_(self, self.W.bias, "f", forget_bias)

    def forward(self, x: Tensor, s: State) -> State:
        wi, wf, wg, wo = self.W(x).chunk(4, -1)
        ui, uf, ug, uo = self.U(s.h).chunk(4, -1)
        i = torch.sigmoid(wi + total(ui))
        f = torch.sigmoid(wf + uf)  # one forget gate per predecessor
        g = torch.tanh(wg + total(ug))
        o = torch.sigmoid(wo + total(uo))
        c = total(f * s.c) + i * g
        return self.State(o * torch.tanh(c), c)
