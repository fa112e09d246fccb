"""Recursive networks: one layer of weights at every node of a tree."""

from __future__ import annotations

from collections import namedtuple
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ritornello.cells.cell import Cell
from ritornello.cells.initialise import uniform_
from ritornello.errors import ArgumentError


def check_slots(cell: Cell, slots: Any) -> int:
    """Raises ArgumentError unless a cell can tell so many children apart."""
    if not isinstance(slots, int) or slots < 2:
        name = type(cell).__name__
        raise ArgumentError(f"{name}: slots must be 2 or more, not {slots!r}: a cell with one child is one for chains.")
    return slots


class RecursiveNet(Cell):
    r"""The recursive network: a node's state from its children's, side by side.

    .. math:: h = \tanh(V x + W [h_1; …; h_N] + b)

    Goodfellow, Bengio & Courville, section 10.6 and figure 10.14; Socher, Lin, Ng & Manning (2011), eq. 4. A node
    without x, or without children, leaves out that term. Where x has hidden_size features and `project` is False, V is
    the identity: then a leaf is its word's vector, as in Socher's work, but for b and tanh.

    Args:
        input_size: features of x.
        hidden_size: features of h.
        slots: N, how many children a node may have. Default 2.
        project: whether x has weights V of its own. Default True.

    Shapes:
        x (rows, input_size); each child's h (rows, hidden_size). Parameters: V.weight (hidden_size, input_size),
        W.weight (hidden_size, N·hidden_size), W.bias (hidden_size), each uniform in ±1/√hidden_size, with the mean of
        the children added to W: a new network hands their mean on, and not next to nothing.

    Raises:
        ArgumentError: sizes that are no positive integers, or differ where `project` is False; fewer than 2 slots.

    Example:
        >>> import ritornello as rit
        >>> unfold = rit.Unfold(RecursiveNet(3, 4))
        >>> nodes, root = unfold.over([[2, 2, -1]], torch.randn(2, 3), inputs="leaves")
        >>> nodes.shape, root.h.shape
        (torch.Size([3, 4]), torch.Size([1, 4]))
    """

    State = namedtuple("State", "h")
    recurrent: ClassVar[tuple[str, ...]] = ("W.weight",)

    def __init__(self, input_size: int, hidden_size: int, slots: int = 2, project: bool = True) -> None:
        super().__init__(input_size, hidden_size)
        self.slots = check_slots(self, slots)
        if not project and input_size != hidden_size:
            raise ArgumentError(
                f"{type(self).__name__}: with project=False x is added to h: input_size={input_size} and "
                f"hidden_size={hidden_size} must be the same."
            )
        self.V = nn.Linear(input_size, hidden_size, bias=False) if project else None
        self.W = nn.Linear(slots * hidden_size, hidden_size)
        uniform_(self)
        with torch.no_grad():
            self.W.weight += torch.eye(hidden_size).repeat(1, slots) / slots

    def forward(self, x: Tensor, *children: Any) -> Any:
        h = torch.cat([child.h for child in children], -1)
        return self.State(torch.tanh((x if self.V is None else self.V(x)) + self.W(h)))


class RecursiveTensorNet(RecursiveNet):
    r"""The recursive neural tensor network: children meet in products, too.

    .. math:: h_i = \tanh((V x)_i + (W s)_i + b_i + s^\top T_i s) \qquad s = [h_1; …; h_N]

    Socher, Perelygin, Wu, Chuang, Manning, Ng & Potts (2013), "Recursive deep models for semantic compositionality over
    a sentiment treebank", section 4.3. One child can turn the other's meaning round ("not good"). T has hidden_size ·
    (N·hidden_size)² numbers: of 25 to 35 features, as in the paper.

    Arguments, errors and shapes as `RecursiveNet`'s; besides, T (hidden_size, N·hidden_size, N·hidden_size), uniform in
    ±1/(4·hidden_size).

    Example:
        >>> import ritornello as rit
        >>> unfold = rit.Unfold(RecursiveTensorNet(4, 4, project=False))
        >>> nodes, _ = unfold.over([[2, 2, -1]], torch.randn(2, 4), inputs="leaves")
        >>> nodes.shape
        torch.Size([3, 4])
    """

    def __init__(self, input_size: int, hidden_size: int, slots: int = 2, project: bool = True) -> None:
        super().__init__(input_size, hidden_size, slots, project)
        bound = 0.25 / hidden_size
        self.T = nn.Parameter(
            torch.empty(hidden_size, slots * hidden_size, slots * hidden_size).uniform_(-bound, bound)
        )

    def forward(self, x: Tensor, *children: Any) -> Any:
        s = torch.cat([child.h for child in children], -1)
        return self.State(torch.tanh((x if self.V is None else self.V(x)) + self.W(s) + F.bilinear(s, s, self.T)))
