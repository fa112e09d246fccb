"""Long short-term memory over trees whose children are told apart."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import torch
from torch import Tensor, nn

from ritornello.cells.cell import Cell
from ritornello.cells.initialise import add_to_gate_bias_, uniform_
from ritornello.cells.recursive import check_slots


class TreeLSTM(Cell):
    r"""The N-ary Tree-LSTM: a memory for trees whose children have places.

    .. math::
        i &= \sigma(W_i x + \sum_l U_i^l h_l + b_i) &
        f_k &= \sigma(W_f x + \sum_l U_f^{kl} h_l + b_f) \\
        g &= \tanh(W_g x + \sum_l U_g^l h_l + b_g) &
        o &= \sigma(W_o x + \sum_l U_o^l h_l + b_o) \\
        c &= \sum_k f_k \odot c_k + i \odot g & h &= o \odot \tanh(c)

    Tai, Socher & Manning (2015), "Improved semantic representations from tree-structured long short-term memory
    networks", eq. 9 to 14; with N = 2, x at leaves alone and binary trees their Constituency Tree-LSTM. What to reach
    for first over trees. Of trees with any number of children, or where their order says nothing, unfold `LSTM`: that
    is their child-sum Tree-LSTM.

    Args:
        input_size: features of x.
        hidden_size: features of h and of c.
        slots: N, how many children a node may have. Default 2.
        forget_bias: added to b_f at the start. Default 1.

    Shapes:
        x (rows, input_size); each child's h, c (rows, hidden_size). Gates are stacked in the order of `gates`, f once
        for each child: W.weight (4·hidden_size, input_size), W.bias (4·hidden_size), U.weight ((3 + N)·hidden_size,
        N·hidden_size) with f_1 to f_N last, each uniform in ±1/√hidden_size.

    Raises:
        ArgumentError: sizes that are no positive integers; fewer than 2 slots.

    Example:
        >>> import ritornello as rit
        >>> unfold = rit.Unfold(TreeLSTM(3, 4))
        >>> nodes, root = unfold.over([[2, 2, -1]], torch.randn(2, 3), inputs="leaves")
        >>> nodes.shape, root.c.shape
        (torch.Size([3, 4]), torch.Size([1, 4]))
    """

    State = namedtuple("State", "h c")
    gates = ("i", "g", "o", "f")
    keeps, writes = ("f",), ("i",)

    def __init__(self, input_size: int, hidden_size: int, slots: int = 2, forget_bias: float = 1.0) -> None:
        super().__init__(input_size, hidden_size)
        self.slots = check_slots(self, slots)
        self.W = nn.Linear(input_size, 4 * hidden_size)
        self.U = nn.Linear(slots * hidden_size, (3 + slots) * hidden_size, bias=False)
        uniform_(self)
        add_to_gate_bias_(self, self.W.bias, "f", forget_bias)

    def forward(self, x: Tensor, *children: Any) -> Any:
        wi, wg, wo, wf = self.W(x).chunk(4, -1)
        ui, ug, uo, *uf = self.U(torch.cat([child.h for child in children], -1)).chunk(3 + len(children), -1)
        c = torch.sigmoid(wi + ui) * torch.tanh(wg + ug)
        for child, u in zip(children, uf, strict=True):
            c = c + torch.sigmoid(wf + u) * child.c
        return self.State(torch.sigmoid(wo + uo) * torch.tanh(c), c)
