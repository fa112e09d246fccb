"""The simple recurrent network."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ritornello.cells.cell import Cell, total
from ritornello.cells.initialise import uniform_
from ritornello.errors import ArgumentError

NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}


class Elman(Cell):
    r"""The simple recurrent network: hidden to hidden.

    .. math:: h^{(t)} = \tanh(W x^{(t)} + U h^{(t-1)} + b)

    Elman (1990), "Finding structure in time"; Goodfellow, Bengio & Courville, eq. 10.8 and 10.9. Over trees the
    predecessors' states are summed. Small and quick; its gradients vanish or explode over some tens of steps.

    Args:
        input_size: features of x.
        hidden_size: features of h.
        nonlinearity: "tanh" (default) or "relu".

    Shapes:
        x (rows, input_size), s.h (rows, hidden_size).
        Parameters: W.weight (hidden_size, input_size), W.bias (hidden_size), U.weight (hidden_size, hidden_size),
        each uniform in ±1/√hidden_size as in `torch.nn.RNN`.

    Raises:
        ArgumentError: a size that is no positive integer, or an unknown nonlinearity.

    Example:
        >>> cell = Elman(3, 4)
        >>> state = cell(torch.zeros(2, 3), cell.zero_state(2, torch.zeros(())))
        >>> state.h.shape
        torch.Size([2, 4])
    """

    State = namedtuple("State", "h")

    def __init__(self, input_size: int, hidden_size: int, nonlinearity: str = "tanh") -> None:
        super().__init__(input_size, hidden_size)
        if nonlinearity not in NONLINEARITIES:
            raise ArgumentError(f"Elman: nonlinearity must be 'tanh' or 'relu', not {nonlinearity!r}.")
        self.nonlinearity = nonlinearity
        self.W = nn.Linear(input_size, hidden_size)
        self.U = nn.Linear(hidden_size, hidden_size, bias=False)
        uniform_(self)

    def forward(self, x: Tensor, s: State) -> State:
        return self.State(NONLINEARITIES[self.nonlinearity](self.W(x) + self.U(total(s.h))))
