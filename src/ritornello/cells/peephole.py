"""Long short-term memory whose gates see the memory."""

from __future__ import annotations

from collections import namedtuple

import torch
from torch import Tensor, nn

from ritornello.cells.cell import Cell
from ritornello.cells.initialise import add_to_gate_bias_, uniform_
from ritornello.errors import ArgumentError, nearest


class PeepholeLSTM(Cell):
    r"""Long short-term memory with peepholes.

    .. math::
        i &= \sigma(W_i x + U_i h' + P_i c' + b_i) & f &= \sigma(W_f x + U_f h' + P_f c' + b_f) \\
        g &= \tanh(W_g x + U_g h' + b_g) & c &= f \odot c' + i \odot g \\
        o &= \sigma(W_o x + U_o h' + P_o c + b_o) & h &= o \odot \tanh(c)

    with P a matrix, or, in the usual form, a vector: P c = p ⊙ c. Gers & Schmidhuber (2000), "Recurrent nets that time
    and count"; Graves (2013) has vectors. For exact intervals: a closed output gate does not hide the memory from the
    other gates.

    Args:
        input_size: features of x.
        hidden_size: features of h and of c.
        peephole: "vectors" (default) or "matrices", which cost 3 hidden_size² more weights.
        forget_bias: added to the forget gate's bias at the start. Default 1.

    Shapes:
        x (rows, input_size); s.h, s.c (rows, hidden_size). Gates are stacked in the order of `gates` (torch's), those
        of P in the order i, f, o. Parameters: W.weight (4·hidden_size, input_size), W.bias (4·hidden_size), U.weight
        (4·hidden_size, hidden_size), p (3, hidden_size) or (3, hidden_size, hidden_size), each uniform in
        ±1/√hidden_size.

    Raises:
        ArgumentError: a size that is no positive integer, or an unknown kind of peephole.

    Example:
        >>> cell = PeepholeLSTM(3, 4, peephole="matrices")
        >>> cell(torch.zeros(2, 3), cell.zero_state(2, torch.zeros(()))).c.shape
        torch.Size([2, 4])
    """

    State = namedtuple("State", "h c")
    gates = ("i", "f", "g", "o")
    keeps, writes = ("f",), ("i",)

    def __init__(self, input_size: int, hidden_size: int, peephole: str = "vectors", forget_bias: float = 1.0) -> None:
        super().__init__(input_size, hidden_size)
        if peephole not in ("vectors", "matrices"):
            raise ArgumentError(
                f"PeepholeLSTM: unknown peephole {peephole!r}: {nearest(str(peephole), ['vectors', 'matrices'])}."
            )
        self.peephole = peephole
        self.W = nn.Linear(input_size, 4 * hidden_size)
        self.U = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        each = (hidden_size,) if peephole == "vectors" else (hidden_size, hidden_size)
        self.p = nn.Parameter(torch.empty(3, *each))
        uniform_(self)
        add_to_gate_bias_(self, self.W.bias, "f", forget_bias)

    def forward(self, x: Tensor, s: State) -> State:
        i, f, g, o = (self.W(x) + self.U(s.h)).chunk(4, -1)
        i, f = torch.sigmoid(i + self._seen(0, s.c)), torch.sigmoid(f + self._seen(1, s.c))
        c = f * s.c + i * torch.tanh(g)
        o = torch.sigmoid(o + self._seen(2, c))
        return self.State(o * torch.tanh(c), c)

    def _seen(self, gate: int, c: Tensor) -> Tensor:
        return self.p[gate] * c if self.peephole == "vectors" else nn.functional.linear(c, self.p[gate])
