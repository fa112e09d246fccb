"""Recurrent highway networks."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import torch
from torch import Tensor, nn

from ritornello.cells.cell import Cell, total
from ritornello.cells.initialise import check_number, uniform_
from ritornello.errors import ArgumentError


class RecurrentHighway(Cell):
    r"""A deep transition whose layers let through what they do not change.

    .. math::
        s_0 &= h' & (n, t) &= R_l s_{l-1} + b_l + [l = 1]\, W x \\
        s_l &= \sigma(t) \odot \tanh(n) + (1 - \sigma(t)) \odot s_{l-1} & h &= s_L

    Zilly, Srivastava, Koutník & Schmidhuber (2017), "Recurrent highway networks", eq. 6 to 9, with coupled gates. Depth
    in time without a longer way for the gradient; at equal weights among the best on text.

    Args:
        input_size: features of x.
        hidden_size: features of h.
        depth: L, layers from h' to h. Default 3.
        carry_bias: the transform gates' bias at the start. Default -2: at first most is let through.

    Shapes:
        x (rows, input_size), s.h (rows, hidden_size). Gates are stacked in the order of `gates`. Parameters: W.weight
        (2·hidden_size, input_size), of each layer R.l.weight (2·hidden_size, hidden_size) and R.l.bias
        (2·hidden_size), uniform in ±1/√hidden_size.

    Raises:
        ArgumentError: a size or depth that is no positive integer.

    Example:
        >>> cell = RecurrentHighway(3, 4, depth=2)
        >>> cell(torch.zeros(2, 3), cell.zero_state(2, torch.zeros(()))).h.shape
        torch.Size([2, 4])
    """

    State = namedtuple("State", "h")
    gates = ("n", "t")

    def __init__(self, input_size: int, hidden_size: int, depth: int = 3, carry_bias: float = -2.0) -> None:
        super().__init__(input_size, hidden_size)
        if not isinstance(depth, int) or depth < 1:
            raise ArgumentError(f"RecurrentHighway: depth must be a positive integer, not {depth!r}.")
        check_number("RecurrentHighway", "carry_bias", carry_bias)
        self.W = nn.Linear(input_size, 2 * hidden_size, bias=False)
        self.R = nn.ModuleList(nn.Linear(hidden_size, 2 * hidden_size) for _ in range(depth))
        uniform_(self)
        with torch.no_grad():
            for name, bias in self.R.named_parameters():
                if name.endswith("bias"):
                    bias.chunk(2)[1].fill_(carry_bias)

    @property
    def recurrent(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names of recurrent weights."""
        return tuple(f"R.{number}.weight" for number in range(len(self.R)))

    def forward(self, x: Tensor, s: Any) -> Any:
        state, entering = total(s.h), self.W(x)
        for number, layer in enumerate(self.R):
            both = layer(state) + entering if number == 0 else layer(state)
            n, t = both.chunk(2, -1)
            t = torch.sigmoid(t)
            state = t * torch.tanh(n) + (1 - t) * state
        return self.State(state)
