"""The simple recurrent unit."""

from __future__ import annotations

from collections import namedtuple

import torch
from torch import Tensor, nn

from ritornello.cells.cell import Cell
from ritornello.cells.initialise import uniform_


class SRU(Cell):
    r"""The simple recurrent unit: a gated mean of inputs, and a highway past it.

    .. math::
        f &= \sigma(W_f x + v_f \odot c' + b_f) & r &= \sigma(W_r x + v_r \odot c' + b_r) \\
        c &= f \odot c' + (1 - f) \odot (W_n x + b_n) & h &= r \odot c + (1 - r) \odot x

    Lei, Zhang, Wang, Dai & Artzi (2018), "Simple recurrent units for highly parallelizable recurrence", eq. 1 to 4;
    they have no b_n, and where sizes differ, x in the last line is W_x x + b_x. Without v, as in the first version of
    the paper, it is linear in its state, and runs as a scan; with it no product is left in the loop either.

    Args:
        input_size: features of x.
        hidden_size: features of h and of c.
        peephole: whether the gates see c'. Default False.

    Shapes:
        x (rows, input_size); s.h, s.c (rows, hidden_size). Gates are stacked in the order of `gates` (the last one only
        where sizes differ). Parameters: W.weight (3 or 4·hidden_size, input_size), W.bias (the same), v (2,
        hidden_size), each uniform in ±1/√hidden_size.

    Raises:
        ArgumentError: a size that is no positive integer.

    Example:
        >>> cell = SRU(3, 4)
        >>> cell(torch.zeros(2, 3), cell.zero_state(2, torch.zeros(()))).h.shape
        torch.Size([2, 4])
    """

    State = namedtuple("State", "h c")
    recurrent = ()
    keeps = ("f",)

    def __init__(self, input_size: int, hidden_size: int, peephole: bool = False) -> None:
        super().__init__(input_size, hidden_size)
        self.W = nn.Linear(input_size, len(self.gates) * hidden_size)
        self.v = nn.Parameter(torch.empty(2, hidden_size)) if peephole else None
        uniform_(self)

    @property
    def gates(self) -> tuple[str, ...]:  # type: ignore[override]
        """Of the stacked product."""
        return ("n", "f", "r") if self.input_size == self.hidden_size else ("n", "f", "r", "x")

    def forward(self, x: Tensor, s: State) -> State:
        n, f, r, *projected = self.W(x).chunk(len(self.gates), -1)
        if self.v is not None:
            f, r = f + self.v[0] * s.c, r + self.v[1] * s.c
        f, r = torch.sigmoid(f), torch.sigmoid(r)
        c = f * s.c + (1 - f) * n
        return self.State(r * c + (1 - r) * (projected[0] if projected else x), c)
