"""Leaky integrators."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ritornello.cells.cell import Cell, total
from ritornello.cells.initialise import leak_logits, uniform_
from ritornello.errors import ArgumentError


class Leaky(Cell):
    r"""Leaky units: each step moves h a part of the way.

    .. math:: h = (1 - \alpha) \odot h' + \alpha \odot \tanh(W x + U h' + b) \qquad \alpha = \sigma(a)

    Mozer (1992); Jaeger et al. (2007), "Optimization and applications of echo state networks with leaky-integrator
    neurons"; Goodfellow, Bengio & Courville, section 10.9.2. A unit forgets in about 1/α steps, and along h the
    gradient is multiplied by 1 - α a step. Slow signals, few parameters.

    Args:
        input_size: features of x.
        hidden_size: features of h.
        leak: α at the start, one number for all units, or the two ends of a range that they share out evenly on a
            logarithmic scale. Default (0.01, 1): times from one step to a hundred. 1 stands for 0.999.

    Shapes:
        x (rows, input_size), s.h (rows, hidden_size). Parameters: W.weight (hidden_size, input_size), W.bias
        (hidden_size), U.weight (hidden_size, hidden_size), each uniform in ±1/√hidden_size, and a (hidden_size).

    Raises:
        ArgumentError: a size that is no positive integer, or a leak outside 0 (exclusive) to 1.

    Example:
        >>> cell = Leaky(3, 4, leak=0.1)
        >>> cell(torch.zeros(2, 3), cell.zero_state(2, torch.zeros(()))).h.shape
        torch.Size([2, 4])
    """

    State = namedtuple("State", "h")

    def __init__(self, input_size: int, hidden_size: int, leak: float | Sequence[float] = (0.01, 1.0)) -> None:
        super().__init__(input_size, hidden_size)
        ends = tuple(leak) if isinstance(leak, Sequence) else (leak, leak)
        if len(ends) != 2 or not all(isinstance(end, (int, float)) and 0 < end <= 1 for end in ends):
            raise ArgumentError(f"Leaky: leak must be one or two numbers in 0 (exclusive) to 1, not {leak!r}.")
        self.W = nn.Linear(input_size, hidden_size)
        self.U = nn.Linear(hidden_size, hidden_size, bias=False)
        uniform_(self)
        self.a = nn.Parameter(leak_logits(ends, hidden_size))

    def forward(self, x: Tensor, s: State) -> State:
        alpha = torch.sigmoid(self.a)
        h = total(s.h)
        return self.State((1 - alpha) * h + alpha * torch.tanh(self.W(x) + self.U(h)))
