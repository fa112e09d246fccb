"""Long short-term memory with a projected state."""

from __future__ import annotations

from collections import namedtuple

import torch
from torch import Tensor, nn

from ritornello.cells.cell import Cell
from ritornello.cells.initialise import add_to_gate_bias_, uniform_
from ritornello.errors import ArgumentError


class ProjectedLSTM(Cell):
    r"""Long short-term memory whose output is a projection of its memory.

    .. math::
        i &= \sigma(W_i x + U_i r' + b_i) & f &= \sigma(W_f x + U_f r' + b_f) \\
        g &= \tanh(W_g x + U_g r' + b_g) & o &= \sigma(W_o x + U_o r' + b_o) \\
        c &= f \odot c' + i \odot g & r &= V (o \odot \tanh(c))

    Sak, Senior & Beaufays (2014), "Long short-term memory recurrent neural network architectures for large scale
    acoustic modeling". A wide memory with narrow recurrent weights: for large models.

    Args:
        input_size: features of x.
        hidden_size: features of c.
        output_size: features of r. Default: half of hidden_size, at least 1.
        forget_bias: added to the forget gate's bias at the start. Default 1.

    Shapes:
        x (rows, input_size); s.r (rows, output_size), s.c (rows, hidden_size). Gates are stacked in the order of
        `gates` (torch's). Parameters: W.weight (4·hidden_size, input_size), W.bias (4·hidden_size), U.weight
        (4·hidden_size, output_size), V.weight (output_size, hidden_size), each uniform in ±1/√hidden_size.

    Raises:
        ArgumentError: a size that is no positive integer.

    Example:
        >>> cell = ProjectedLSTM(3, 4)
        >>> [tuple(field.shape) for field in cell(torch.zeros(5, 3), cell.zero_state(5, torch.zeros(())))]
        [(5, 2), (5, 4)]
    """

    State = namedtuple("State", "r c")
    gates = ("i", "f", "g", "o")
    keeps, writes = ("f",), ("i",)

    def __init__(
        self, input_size: int, hidden_size: int, output_size: int | None = None, forget_bias: float = 1.0
    ) -> None:
        super().__init__(input_size, hidden_size)
        outputs = max(1, hidden_size // 2) if output_size is None else output_size
        if not isinstance(outputs, int) or outputs < 1:
            raise ArgumentError(f"ProjectedLSTM: output_size must be a positive integer, not {outputs!r}.")
        self.outputs = outputs
        self.W = nn.Linear(input_size, 4 * hidden_size)
        self.U = nn.Linear(outputs, 4 * hidden_size, bias=False)
        self.V = nn.Linear(hidden_size, outputs, bias=False)
        uniform_(self)
        add_to_gate_bias_(self, self.W.bias, "f", forget_bias)

    @property
    def state_sizes(self) -> tuple[int, ...]:
        return (self.outputs, self.hidden_size)

    def forward(self, x: Tensor, s: State) -> State:
        i, f, g, o = (self.W(x) + self.U(s.r)).chunk(4, -1)
        c = torch.sigmoid(f) * s.c + torch.sigmoid(i) * torch.tanh(g)
        return self.State(self.V(torch.sigmoid(o) * torch.tanh(c)), c)
