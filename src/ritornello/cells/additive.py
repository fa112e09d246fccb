"""The simple solution to vanishing gradients: a memory that is added to."""

from __future__ import annotations

from collections import namedtuple

import torch
from torch import Tensor, nn

from ritornello.cells.cell import Cell, total
from ritornello.cells.initialise import uniform_


class AdditiveMemory(Cell):
    r"""A memory that is added to, without gates.

    .. math:: g &= \tanh(W x + U h' + b) & c &= \theta \odot c' + \theta_g \odot g & h &= \tanh(c)

    with θ near 1: along c the gradient is multiplied by θ a step and not by a matrix. What gated cells grew from, and
    the first thing to try against them.

    Args:
        input_size: features of x.
        hidden_size: features of h and of c.
        theta: θ at the start. Default 0.99; above 1 the memory explodes.

    Shapes:
        x (rows, input_size); s.h, s.c (rows, hidden_size). Parameters: W.weight (hidden_size, input_size), W.bias
        (hidden_size), U.weight (hidden_size, hidden_size), each uniform in ±1/√hidden_size; theta and theta_g
        (hidden_size), at first `theta` and 1.

    Raises:
        ArgumentError: a size that is no positive integer.

    Example:
        >>> cell = AdditiveMemory(3, 4)
        >>> cell(torch.zeros(2, 3), cell.zero_state(2, torch.zeros(()))).c.shape
        torch.Size([2, 4])
    """

    State = namedtuple("State", "h c")

    def __init__(self, input_size: int, hidden_size: int, theta: float = 0.99) -> None:
        super().__init__(input_size, hidden_size)
        self.W = nn.Linear(input_size, hidden_size)
        self.U = nn.Linear(hidden_size, hidden_size, bias=False)
        uniform_(self)
        self.theta = nn.Parameter(torch.full((hidden_size,), theta))
        self.theta_g = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: Tensor, s: State) -> State:
        g = torch.tanh(self.W(x) + self.U(total(s.h)))
        c = self.theta * total(s.c) + self.theta_g * g
        return self.State(torch.tanh(c), c)
