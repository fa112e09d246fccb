"""The gated recurrent unit over trees whose children are told apart."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import torch
from torch import Tensor, nn

from ritornello.cells.cell import Cell
from ritornello.cells.initialise import uniform_
from ritornello.cells.recursive import check_slots


class TreeGRU(Cell):
    r"""The gated recursive network: a node is a mixture of its children and of something new.

    .. math::
        r_k &= \sigma(W_r x + \sum_l U_r^{kl} h_l + b_r) \\
        n &= \tanh(W_n x + \sum_k U_n^k (r_k \odot h_k) + b_n) \\
        (z_0, z_1, …, z_N) &= \mathrm{softmax}(W_z x + U_z [n; h_1; …; h_N] + b_z) \\
        h &= z_0 \odot n + \sum_k z_k \odot h_k

    with the softmax over the N + 1 candidates, unit by unit. Chen, Qiu, Zhu, Wu & Huang (2015), "Sentence modeling with
    gated recursive neural network", with x at any node. The Tree-GRU of trees with any number of children, which sums
    over them, is `GRU(reset="before")`.

    Args:
        input_size: features of x.
        hidden_size: features of h.
        slots: N, how many children a node may have. Default 2.

    Shapes:
        x (rows, input_size); each child's h (rows, hidden_size). Parameters: W.weight ((3 + N)·hidden_size, input_size)
        and W.bias for r, n and z; R.weight (N·hidden_size, N·hidden_size), U.weight (hidden_size, N·hidden_size),
        Z.weight ((N + 1)·hidden_size, (N + 1)·hidden_size); each uniform in ±1/√hidden_size.

    Raises:
        ArgumentError: sizes that are no positive integers; fewer than 2 slots.

    Example:
        >>> import ritornello as rit
        >>> unfold = rit.Unfold(TreeGRU(3, 4, slots=3))
        >>> unfold.over([[3, 3, 3, -1]], torch.randn(4, 3))[0].shape
        torch.Size([4, 4])
    """

    State = namedtuple("State", "h")
    recurrent = ("R.weight", "U.weight", "Z.weight")

    def __init__(self, input_size: int, hidden_size: int, slots: int = 2) -> None:
        super().__init__(input_size, hidden_size)
        self.slots = check_slots(self, slots)
        self.W = nn.Linear(input_size, (3 + slots) * hidden_size)
        self.R = nn.Linear(slots * hidden_size, slots * hidden_size, bias=False)
        self.U = nn.Linear(slots * hidden_size, hidden_size, bias=False)
        self.Z = nn.Linear((slots + 1) * hidden_size, (slots + 1) * hidden_size, bias=False)
        uniform_(self)

    def forward(self, x: Tensor, *children: Any) -> Any:
        wr, wn, *wz = self.W(x).chunk(3 + len(children), -1)
        h = torch.cat([child.h for child in children], -1)
        r = torch.sigmoid(torch.cat([wr] * len(children), -1) + self.R(h))
        n = torch.tanh(wn + self.U(r * h))
        candidates = (n, *(child.h for child in children))
        z = [w + u for w, u in zip(wz, self.Z(torch.cat(candidates, -1)).chunk(len(candidates), -1), strict=True)]
        largest = z[0]
        for each in z[1:]:
            largest = torch.maximum(largest, each)
        weights = [torch.exp(each - largest) for each in z]
        mixed = sum(weight * candidate for weight, candidate in zip(weights, candidates, strict=True))
        return self.State(mixed / sum(weights))
