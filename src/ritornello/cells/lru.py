"""Linear recurrent units, in their real form."""

from __future__ import annotations

from collections import namedtuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ritornello.cells.cell import Cell, total
from ritornello.cells.initialise import check_number, uniform_
from ritornello.errors import ArgumentError


class LRU(Cell):
    r"""The linear recurrent unit with real eigenvalues.

    .. math::
        \lambda &= \exp(-\exp(\nu)) & s &= \lambda \odot s' + \sqrt{1 - \lambda^2} \odot B x & y &= C s + D x + d

    Orvieto et al. (2023), "Resurrecting recurrent neural networks for long sequences", with λ real in place of complex
    and a dense D: a bank of exponential means between two dense layers. Linear in its state, so it runs as a scan; λ
    cannot leave (0, 1). Between layers it wants something nonlinear (`ritornello.nn.Residual`, a gated unit).

    Args:
        input_size: features of x.
        hidden_size: features of y and of s.
        slowest, fastest: the ends of the range that λ is drawn from, uniformly in λ². Default 0.999 and 0.5.

    Shapes:
        x (rows, input_size); s.y, s.s (rows, hidden_size). Parameters: B.weight (hidden_size, input_size), C.weight
        (hidden_size, hidden_size), D.weight (hidden_size, input_size), D.bias (hidden_size), uniform in
        ±1/√hidden_size, and nu (hidden_size).

    Raises:
        ArgumentError: a size that is no positive integer, or a range outside 0 to 1.

    Example:
        >>> cell = LRU(3, 4)
        >>> cell(torch.zeros(2, 3), cell.zero_state(2, torch.zeros(()))).y.shape
        torch.Size([2, 4])
    """

    State = namedtuple("State", "y s")
    recurrent = ()

    def __init__(self, input_size: int, hidden_size: int, slowest: float = 0.999, fastest: float = 0.5) -> None:
        super().__init__(input_size, hidden_size)
        _check_range("LRU", slowest, fastest)
        self.B = nn.Linear(input_size, hidden_size, bias=False)
        self.C = nn.Linear(hidden_size, hidden_size, bias=False)
        self.D = nn.Linear(input_size, hidden_size)
        uniform_(self)
        squares = torch.empty(hidden_size).uniform_(fastest**2, slowest**2)
        self.nu = nn.Parameter((-0.5 * squares.log()).log())

    def forward(self, x: Tensor, s: State) -> State:
        rate = -torch.exp(self.nu)
        state = torch.exp(rate) * total(s.s) + torch.sqrt(-torch.expm1(2 * rate)) * self.B(x)
        return self.State(self.C(state) + self.D(x), state)


class RGLRU(Cell):
    r"""The real-gated linear recurrent unit: the input says how long each unit remembers.

    .. math::
        r &= \sigma(W_r x + b_r) & i &= \sigma(W_i x + b_i) & \log a &= -8\, \mathrm{softplus}(\Lambda) \odot r \\
        && h &= a \odot h' + \sqrt{1 - a^2} \odot (i \odot (W_n x + b_n)) &&

    De et al. (2024), "Griffin: mixing gated linear recurrences with local attention", eq. 1 to 4, with a dense layer
    W_n before it, so that sizes may differ. Linear in its state: all products are done at once, and what is left is a
    scan.

    In the paper a gated branch and a residual connection stand beside it, and the unit keeps long means only, to which
    a step adds little. Where h is all that is read, let some units forget at once: a `fastest` of 0.05.

    Args:
        input_size: features of x.
        hidden_size: features of h.
        slowest, fastest: the ends of the range that a is drawn from, uniformly, where r = 1. Default 0.999 and 0.9.

    Shapes:
        x (rows, input_size), s.h (rows, hidden_size). Gates are stacked in the order of `gates`. Parameters: W.weight
        (3·hidden_size, input_size), W.bias (3·hidden_size), uniform in ±1/√hidden_size, and Lambda (hidden_size).

    Raises:
        ArgumentError: a size that is no positive integer, or a range outside 0 to 1.

    Example:
        >>> cell = RGLRU(3, 4)
        >>> cell(torch.zeros(2, 3), cell.zero_state(2, torch.zeros(()))).h.shape
        torch.Size([2, 4])
    """

    State = namedtuple("State", "h")
    gates = ("r", "i", "n")
    recurrent = ()

    def __init__(self, input_size: int, hidden_size: int, slowest: float = 0.999, fastest: float = 0.9) -> None:
        super().__init__(input_size, hidden_size)
        _check_range("RGLRU", slowest, fastest)
        self.W = nn.Linear(input_size, 3 * hidden_size)
        uniform_(self)
        rate = -torch.empty(hidden_size).uniform_(fastest, slowest).log() / 8
        self.Lambda = nn.Parameter(torch.log(torch.expm1(rate)))

    def forward(self, x: Tensor, s: State) -> State:
        r, i, n = self.W(x).chunk(3, -1)
        log_a = -8 * F.softplus(self.Lambda) * torch.sigmoid(r)
        rest = -torch.expm1(2 * log_a)
        number = torch.finfo(rest.dtype)
        least = max(1e-37, number.tiny * number.eps)  # at 0 the root has no derivative
        fed = torch.sqrt(rest.clamp(min=least)) * (torch.sigmoid(i) * n)
        return self.State(torch.exp(log_a) * total(s.h) + fed)


def _check_range(owner: str, slowest: float, fastest: float) -> None:
    for name, value in (("slowest", slowest), ("fastest", fastest)):
        check_number(owner, name, value)
    if not 0 < fastest < slowest < 1:
        raise ArgumentError(f"{owner}: 0 < fastest < slowest < 1 must hold, not {fastest} and {slowest}.")
