"""Multiplicative modules: recurrent weights that are themselves computed, w_ij = Σ_k u_ijk x_k."""

from __future__ import annotations

from collections import namedtuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ritornello.cells.cell import Cell, total
from ritornello.cells.initialise import add_to_gate_bias_, uniform_
from ritornello.errors import ArgumentError


class TensorRNN(Cell):
    r"""Each input has recurrent weights of its own: a three-way tensor, in full.

    .. math:: w_{ij} = \sum_k u_{ijk} x_k \qquad h = \tanh(W x + (U + w) h' + b)

    The tensor network of Sutskever, Martens & Hinton (2011), "Generating text with recurrent neural networks", before
    they factor it, with a U that all inputs share. Inputs choose what the state does; of few features only, for the
    tensor has input_size · hidden_size² numbers.

    Args:
        input_size: features of x.
        hidden_size: features of h.

    Shapes:
        x (rows, input_size), s.h (rows, hidden_size). Parameters: W.weight (hidden_size, input_size), W.bias
        (hidden_size), U.weight (hidden_size, hidden_size), u (hidden_size, input_size, hidden_size), which is u_ikj:
        each uniform in ±1/√hidden_size, u in 1/√input_size of that.

    Raises:
        ArgumentError: a size that is no positive integer.

    Example:
        >>> cell = TensorRNN(3, 4)
        >>> cell(torch.zeros(2, 3), cell.zero_state(2, torch.zeros(()))).h.shape
        torch.Size([2, 4])
    """

    State = namedtuple("State", "h")

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.W = nn.Linear(input_size, hidden_size)
        self.U = nn.Linear(hidden_size, hidden_size, bias=False)
        self.u = nn.Parameter(torch.empty(hidden_size, input_size, hidden_size))
        uniform_(self)
        with torch.no_grad():
            self.u.mul_(input_size**-0.5)

    def forward(self, x: Tensor, s: State) -> State:
        return self.State(torch.tanh(self.W(x) + self.U(s.h) + F.bilinear(x, s.h, self.u)))


class MultiplicativeRNN(Cell):
    r"""The same with a tensor of low rank: m factors between the state before and the state after.

    .. math:: m = (F x) \odot (V h') \qquad h = \tanh(W x + U m + b)

    Sutskever, Martens & Hinton (2011), "Generating text with recurrent neural networks", eq. 7 and 8: U diag(F x) V in
    place of the tensor. Characters change the state in their own way, for half an LSTM's weights.

    Args:
        input_size: features of x.
        hidden_size: features of h.
        factors: of m. Default: hidden_size.

    Shapes:
        x (rows, input_size), s.h (rows, hidden_size). Parameters: W.weight (hidden_size, input_size), W.bias
        (hidden_size), F.weight (factors, input_size), V.weight (factors, hidden_size), U.weight (hidden_size, factors),
        each uniform in ±1/√hidden_size, F's in ±√(3/input_size), so that F x is as large as x.

    Raises:
        ArgumentError: a size that is no positive integer.

    Example:
        >>> cell = MultiplicativeRNN(3, 4, factors=8)
        >>> cell(torch.zeros(2, 3), cell.zero_state(2, torch.zeros(()))).h.shape
        torch.Size([2, 4])
    """

    State = namedtuple("State", "h")
    recurrent = ("V.weight",)

    def __init__(self, input_size: int, hidden_size: int, factors: int | None = None) -> None:
        super().__init__(input_size, hidden_size)
        factors = hidden_size if factors is None else factors
        if not isinstance(factors, int) or factors < 1:
            raise ArgumentError(f"MultiplicativeRNN: factors must be a positive integer, not {factors!r}.")
        self.W = nn.Linear(input_size, hidden_size)
        self.F = nn.Linear(input_size, factors, bias=False)
        self.V = nn.Linear(hidden_size, factors, bias=False)
        self.U = nn.Linear(factors, hidden_size, bias=False)
        uniform_(self)
        bound = (3 / input_size) ** 0.5
        nn.init.uniform_(self.F.weight, -bound, bound)

    def forward(self, x: Tensor, s: State) -> State:
        m = self.F(x) * self.V(total(s.h))
        return self.State(torch.tanh(self.W(x) + self.U(m)))


class MultiplicativeLSTM(Cell):
    r"""Long short-term memory that reads, in place of h', what the input makes of it.

    .. math::
        m &= (W_m x + b_m) \odot (V h') \\
        (i, f, g, o) &= W x + U m + b \\
        c &= \sigma(f) \odot c' + \sigma(i) \odot \tanh(g) & h &= \sigma(o) \odot \tanh(c)

    Krause, Lu, Murray & Renals (2016), "Multiplicative LSTM for sequence modelling", with biases and the LSTM's own
    order of gate and tanh. Strong on text by characters.

    Args:
        input_size: features of x.
        hidden_size: features of h, of c and of m.
        forget_bias: added to the forget gate's bias at the start. Default 1.

    Shapes:
        x (rows, input_size); s.h, s.c (rows, hidden_size). Gates are stacked in the order of `gates`. Parameters:
        W.weight (5·hidden_size, input_size), W.bias (5·hidden_size), V.weight (hidden_size, hidden_size), U.weight
        (4·hidden_size, hidden_size), each uniform in ±1/√hidden_size.

    Raises:
        ArgumentError: a size that is no positive integer.

    Example:
        >>> cell = MultiplicativeLSTM(3, 4)
        >>> cell(torch.zeros(2, 3), cell.zero_state(2, torch.zeros(()))).c.shape
        torch.Size([2, 4])
    """

    State = namedtuple("State", "h c")
    gates = ("i", "f", "g", "o", "m")
    recurrent = ("V.weight", "U.weight")
    keeps, writes = ("f",), ("i",)

    def __init__(self, input_size: int, hidden_size: int, forget_bias: float = 1.0) -> None:
        super().__init__(input_size, hidden_size)
        self.W = nn.Linear(input_size, 5 * hidden_size)
        self.V = nn.Linear(hidden_size, hidden_size, bias=False)
        self.U = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        uniform_(self)
        add_to_gate_bias_(self, self.W.bias, "f", forget_bias)

    def forward(self, x: Tensor, s: State) -> State:
        w, m = self.W(x).split((4 * self.hidden_size, self.hidden_size), -1)
        i, f, g, o = (w + self.U(m * self.V(s.h))).chunk(4, -1)
        c = torch.sigmoid(f) * s.c + torch.sigmoid(i) * torch.tanh(g)
        return self.State(torch.sigmoid(o) * torch.tanh(c), c)
