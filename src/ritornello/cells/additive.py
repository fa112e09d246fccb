"""The simple solution to vanishing gradients: a memory that is added to."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ritornello.cells.cell import Cell, total
from ritornello.cells.initialise import leak_logits, uniform_
from ritornello.errors import ArgumentError


class AdditiveMemory(Cell):
    r"""A memory that is added to, without gates.

    .. math::
        g &= \tanh(W x + U h' + b) & c &= \theta \odot c' + \theta_g \odot g & h &= \tanh(c) & \theta &= \sigma(a)

    Along c the gradient is multiplied by θ a step and not by a matrix: a unit with θ near 1 remembers for about
    1/(1 - θ) steps, and one with a small θ sees what is new. Where all are near 1, no unit shows the last input by
    itself, and text is not learnt. Learnt freely, θ leaves 1 behind and the memory explodes; as σ(a) it cannot. What
    gated cells grew from, and the first thing to try against them.

    Args:
        input_size: features of x.
        hidden_size: features of h and of c.
        theta: θ at the start, one number for all units, or the two ends of a range that they share out so that 1 - θ
            lies evenly on a logarithmic scale. Default (0, 0.99): times from one step to a hundred. 0 stands for 0.001.

    Shapes:
        x (rows, input_size); s.h, s.c (rows, hidden_size). Parameters: W.weight (hidden_size, input_size), W.bias
        (hidden_size), U.weight (hidden_size, hidden_size), each uniform in ±1/√hidden_size; a and theta_g
        (hidden_size), at first the logits of `theta`, and 1.

    Raises:
        ArgumentError: a size that is no positive integer, or a theta outside 0 to 1 (exclusive).

    Example:
        >>> cell = AdditiveMemory(3, 4)
        >>> cell(torch.zeros(2, 3), cell.zero_state(2, torch.zeros(()))).c.shape
        torch.Size([2, 4])
    """

    State = namedtuple("State", "h c")

    def __init__(self, input_size: int, hidden_size: int, theta: float | Sequence[float] = (0.0, 0.99)) -> None:
        super().__init__(input_size, hidden_size)
        ends = tuple(theta) if isinstance(theta, Sequence) else (theta, theta)
        if len(ends) != 2 or not all(isinstance(end, (int, float)) and 0 <= end < 1 for end in ends):
            raise ArgumentError(
                f"AdditiveMemory: theta must be one or two numbers in 0 to 1 (exclusive), not {theta!r}."
            )
        self.W = nn.Linear(input_size, hidden_size)
        self.U = nn.Linear(hidden_size, hidden_size, bias=False)
        uniform_(self)
        self.a = nn.Parameter(-leak_logits((1 - ends[0], 1 - ends[1]), hidden_size))
        self.theta_g = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: Tensor, s: State) -> State:
        g = torch.tanh(self.W(x) + self.U(total(s.h)))
        c = torch.sigmoid(self.a) * total(s.c) + self.theta_g * g
        return self.State(torch.tanh(c), c)
