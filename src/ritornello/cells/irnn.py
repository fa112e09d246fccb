"""The identity recurrent network."""

from __future__ import annotations

import torch
from torch import nn

from ritornello.cells.elman import Elman
from ritornello.cells.initialise import identity_


class IRNN(Elman):
    r"""An Elman network of rectifiers that at first only adds up.

    .. math:: h = \max(0, W x + U h' + b) \qquad U = s I,\; b = 0

    at the start, and W drawn from a normal distribution with deviation 0.001. Le, Jaitly & Hinton (2015), "A simple way
    to initialize recurrent networks of rectified linear units". With s = 1 gradients neither vanish nor explode at
    first; a smaller s forgets. Sums over hundreds of steps, without gates; it wants clipped gradients.

    Args:
        input_size: features of x.
        hidden_size: features of h.
        scale: s. Default 1.

    Shapes:
        As `Elman`'s.

    Raises:
        ArgumentError: a size that is no positive integer.

    Example:
        >>> cell = IRNN(3, 4)
        >>> state = IRNN.State(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        >>> cell(torch.zeros(1, 3), state).h.tolist()
        [[1.0, 2.0, 3.0, 4.0]]
    """

    def __init__(self, input_size: int, hidden_size: int, scale: float = 1.0) -> None:
        super().__init__(input_size, hidden_size, nonlinearity="relu")
        identity_(self, scale)
        with torch.no_grad():
            nn.init.normal_(self.W.weight, std=0.001)
            nn.init.zeros_(self.W.bias)
