"""State in groups, each at its own time scale."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ritornello.cells.cell import Cell
from ritornello.cells.initialise import uniform_
from ritornello.errors import ArgumentError


class GroupedRNN(Cell):
    r"""Groups of units that step at different paces; slow ones are read by fast ones.

    .. math::
        h_g = \begin{cases}
            \tanh(W_g x + \sum_{k \ge g} U_{gk} h'_k + b_g) & p_g \text{ divides } t - 1 \\ h'_g & \text{otherwise}
        \end{cases}

    with the groups in the order of their periods, so that group g reads itself and the slower ones. El Hihi & Bengio
    (1996), "Hierarchical recurrent neural networks for long-term dependencies"; the wiring is the clockwork network's
    of Koutník, Greff, Gomez & Schmidhuber (2014). A group with period p carries a gradient over p steps in one.

    Each row counts its own steps: time begins with the sequence, and with every reset.

    Args:
        input_size: features of x.
        hidden_size: features of h; the groups are equal parts of it, or as near to that as it divides.
        periods: steps of each group, ascending. Default (1, 2, 4, 8). There are no more groups than units. A bfloat16
            state counts to 256.

    Shapes:
        x (rows, input_size); s.h (rows, hidden_size), s.clock (rows, groups): steps until a group is due. Parameters:
        W.weight (hidden_size, input_size), W.bias (hidden_size), U.g.weight (units of group g, units of g and of
        slower groups), each uniform in ±1/√hidden_size.

    Raises:
        ArgumentError: a size that is no positive integer, or periods that are none.

    Example:
        >>> cell = GroupedRNN(3, 8)
        >>> cell(torch.zeros(2, 3), cell.zero_state(2, torch.zeros(()))).clock[0].tolist()
        [0.0, 1.0, 3.0, 7.0]
    """

    State = namedtuple("State", "h clock")
    private = ("clock",)

    def __init__(self, input_size: int, hidden_size: int, periods: Sequence[int] = (1, 2, 4, 8)) -> None:
        super().__init__(input_size, hidden_size)
        self.periods = tuple(periods)[:hidden_size] if isinstance(periods, Sequence) else ()
        count = len(self.periods)
        if not count or any(not isinstance(p, int) or p < 1 for p in periods) or list(periods) != sorted(periods):
            raise ArgumentError(f"GroupedRNN: periods must be ascending positive integers, not {periods!r}.")
        self.sizes = tuple(hidden_size // count + (g < hidden_size % count) for g in range(count))
        self.W = nn.Linear(input_size, hidden_size)
        self.U = nn.ModuleList(nn.Linear(sum(self.sizes[g:]), size, bias=False) for g, size in enumerate(self.sizes))
        uniform_(self)

    @property
    def recurrent(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names of recurrent weights."""
        return tuple(f"U.{g}.weight" for g in range(len(self.periods)))

    @property
    def state_sizes(self) -> tuple[int, ...]:
        return (self.hidden_size, len(self.periods))

    def forward(self, x: Tensor, s: State) -> State:
        fed, own = self.W(x).split(self.sizes, -1), s.h.split(self.sizes, -1)
        groups, clocks = [], []
        for g, (period, recurrent) in enumerate(zip(self.periods, self.U, strict=True)):
            clock = s.clock[..., g : g + 1]
            due = clock < 0.5
            new = torch.tanh(fed[g] + recurrent(torch.cat(own[g:], -1)))
            groups.append(torch.where(due, new, own[g]) if period > 1 else new)
            clocks.append(torch.where(due, period - 1.0, clock - 1))
        return self.State(torch.cat(groups, -1), torch.cat(clocks, -1))
