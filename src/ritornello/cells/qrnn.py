"""The quasi-recurrent network."""

from __future__ import annotations

from collections import namedtuple

import torch
from torch import Tensor, nn

from ritornello.cells.cell import Cell
from ritornello.cells.initialise import uniform_


class QRNN(Cell):
    r"""Quasi-recurrent: a convolution over two steps, and a recurrence without products.

    .. math::
        (z, f, o) &= W x + v' + b & v &= V x \\
        c &= \sigma(f) \odot c' + (1 - \sigma(f)) \odot \tanh(z) & h &= \sigma(o) \odot c

    with v' = V x' of the input of the step before (zero at a sequence's beginning). Bradbury, Merity, Xiong & Socher
    (2017), "Quasi-recurrent neural networks", window 2, fo-pooling. All products are done at once for all steps; what
    is left in the loop is element by element.

    Args:
        input_size: features of x.
        hidden_size: features of h and of c.

    Shapes:
        x (rows, input_size); s.h, s.c (rows, hidden_size), s.v (rows, 3·hidden_size). Gates are stacked in the order of
        `gates`. Parameters: W.weight and V.weight (3·hidden_size, input_size), W.bias (3·hidden_size), each uniform in
        ±1/√hidden_size.

    Raises:
        ArgumentError: a size that is no positive integer.

    Example:
        >>> cell = QRNN(3, 4)
        >>> cell(torch.zeros(2, 3), cell.zero_state(2, torch.zeros(()))).h.shape
        torch.Size([2, 4])
    """

    State = namedtuple("State", "h c v")
    gates = ("z", "f", "o")
    recurrent = ()
    keeps = ("f",)

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.W = nn.Linear(input_size, 3 * hidden_size)
        self.V = nn.Linear(input_size, 3 * hidden_size, bias=False)
        uniform_(self)

    @property
    def state_sizes(self) -> tuple[int, ...]:
        return (self.hidden_size, self.hidden_size, 3 * self.hidden_size)

    def forward(self, x: Tensor, s: State) -> State:
        z, f, o = (self.W(x) + s.v).chunk(3, -1)
        f = torch.sigmoid(f)
        c = f * s.c + (1 - f) * torch.tanh(z)
        return self.State(torch.sigmoid(o) * c, c, self.V(x))
