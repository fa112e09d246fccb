"""The gated recurrent unit."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ritornello.cells.cell import Cell, total
from ritornello.cells.initialise import add_to_gate_bias_, uniform_
from ritornello.errors import ArgumentError


class GRU(Cell):
    r"""The gated recurrent unit.

    .. math::
        r &= \sigma(W_r x + U_r h' + b_r) \qquad z = \sigma(W_z x + U_z h' + b_z) \\
        n &= \tanh(W_n x + b_n + r \odot (U_n h' + d)) && \text{reset="after"} \\
        n &= \tanh(W_n x + b_n + U_n (r \odot h') + d) && \text{reset="before"} \\
        h &= (1 - z) \odot n + z \odot h' && \text{update="keep"} \\
        h &= z \odot n + (1 - z) \odot h' && \text{update="write"}

    with h' the predecessor's state. Cho et al. (2014) put the reset before the product, and z is the share that is
    kept; Chung et al. (2014) have z as the share that is written; `torch.nn.GRU` and the vendors' kernels put the reset
    after the product and keep. Over trees each predecessor has a reset gate of its own (and, with reset="after", a d),
    z reads the sum of the states, and h' in the last line is that sum. As good as the LSTM on most tasks, with three
    quarters of its products.

    Args:
        input_size: features of x.
        hidden_size: features of h.
        reset: "after" (default) or "before".
        update: "keep" (default) or "write": what z is the share of. `with_update` converts one into the other.
        bias: whether there are b and d. Default True.
        forget_bias: added to the update gate's bias at the start (subtracted, where it writes), so that the memory is
            kept. Default 0, as in torch; 2 helped on text.

    Shapes:
        x (rows, input_size); s.h (rows, hidden_size). Gates are stacked in the order of `gates` (torch's).
        Parameters: W.weight (3·hidden_size, input_size), W.bias (3·hidden_size), U.weight (3·hidden_size, hidden_size),
        d (hidden_size), each uniform in ±1/√hidden_size.

    Raises:
        ArgumentError: a size that is no positive integer, an unknown `reset` or `update`, or a forget_bias where there
            are no biases.

    Example:
        >>> cell = GRU(3, 4)
        >>> cell(torch.zeros(2, 3), cell.zero_state(2, torch.zeros(()))).h.shape
        torch.Size([2, 4])
    """

    State = namedtuple("State", "h")
    gates = ("r", "z", "n")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        reset: str = "after",
        update: str = "keep",
        bias: bool = True,
        forget_bias: float = 0.0,
    ) -> None:
        super().__init__(input_size, hidden_size)
        if reset not in ("after", "before"):
            raise ArgumentError(f"GRU: reset must be 'after' or 'before' the product, not {reset!r}.")
        if update not in ("keep", "write"):
            raise ArgumentError(f"GRU: update must be 'keep' or 'write', not {update!r}.")
        self.reset, self.update = reset, update
        self.W = nn.Linear(input_size, 3 * hidden_size, bias=bias)
        self.U = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.d = nn.Parameter(torch.empty(hidden_size)) if bias else None
        uniform_(self)
        if forget_bias and not bias:
            raise ArgumentError(
                f"GRU: forget_bias={forget_bias!r} and bias=False clash: there is no bias to add it to."
            )
        if bias:
            add_to_gate_bias_(self, self.W.bias, "z", forget_bias)

    @property
    def keeps(self) -> tuple[str, ...]:  # type: ignore[override]
        """The gates that keep the memory where they are open."""
        return ("z",) if self.update == "keep" else ()

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The gates that write it anew where they are open."""
        return ("z",) if self.update == "write" else ()

    def with_update(self, update: str) -> GRU:
        """The same function in the other convention of the update gate: σ(-a) = 1 - σ(a), so its weights change sign.

        Args:
            update: "keep" or "write".

        Returns:
            A new cell; it computes the same to the last bits of the sigmoid.

        Example:
            >>> cell, x = GRU(3, 4), torch.randn(2, 3)
            >>> state = GRU.State(torch.randn(2, 4))
            >>> torch.allclose(cell(x, state).h, cell.with_update("write")(x, state).h, atol=1e-6)
            True
        """
        made = GRU(self.input_size, self.hidden_size, self.reset, update, self.d is not None)
        made.to(self.U.weight).load_state_dict(self.state_dict())
        if update != self.update:
            with torch.no_grad():
                for stacked in (made.W.weight, made.U.weight, made.W.bias):
                    if stacked is not None:
                        stacked.chunk(3)[1].neg_()
        return made.train(self.training)

    def forward(self, x: Tensor, s: Any) -> Any:
        wr, wz, wn = self.W(x).chunk(3, -1)
        if self.reset == "after":
            ur, uz, un = self.U(s.h).chunk(3, -1)
            r = torch.sigmoid(wr + ur)
            n = torch.tanh(wn + total(r * (un if self.d is None else un + self.d)))
        else:
            gates, candidate = self.U.weight.split((2 * self.hidden_size, self.hidden_size))
            ur, uz = F.linear(s.h, gates).chunk(2, -1)
            r = torch.sigmoid(wr + ur)
            n = wn + F.linear(total(r * s.h), candidate)
            n = torch.tanh(n if self.d is None else n + self.d)
        z = torch.sigmoid(wz + total(uz))
        if self.update == "keep":
            return self.State((1 - z) * n + z * total(s.h))
        return self.State(z * n + (1 - z) * total(s.h))
