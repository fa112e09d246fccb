"""Deep transitions: more than one layer between a state and the next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ritornello.cells.cell import Cell, state_type, total
from ritornello.cells.initialise import uniform_
from ritornello.errors import ArgumentError


class DeepTransition(Cell):
    r"""A recurrent network with layers in its input, its transition and its output.

    .. math::
        z_0 &= x & z_k &= \tanh(A_k z_{k-1} + a_k) && k = 1 … K = \text{input\_depth} \\
        s_1 &= \tanh(W z_K + U h' + b) & s_l &= \tanh(U_l s_{l-1} + b_l + [l = L]\, S h') && l = 2 … L = \text{depth} \\
        y_0 &= h = s_L & y_m &= \tanh(V_m y_{m-1} + c_m) && m = 1 … M = \text{output\_depth}

    The output is y_M. Pascanu, Gulcehre, Cho & Bengio (2014), "How to construct deep recurrent neural networks": deep
    input, deep transition DT(S), deep output; Goodfellow, Bengio & Courville, section 10.5. A transition of depth L
    lengthens the gradient's way L times, which the shortcut makes good.

    Args:
        input_size: features of x.
        hidden_size: features of h, and of every layer between.
        depth: layers from h' to h. Default 2; 1 is an Elman network.
        input_depth: layers from x to what the transition reads. Default 0.
        output_depth: layers from h to the output. Default 0: h is the output.
        shortcut: whether h reads h' past the layers. Default True; without effect at depth 1.

    Shapes:
        x (rows, input_size); s.h, and with an output_depth s.y (rows, hidden_size). Parameters: input.k, W,
        transition.l and output.m, each with weight and bias, U.weight and S.weight; all matrices (hidden_size,
        hidden_size) but the first that reads x (hidden_size, input_size), uniform in ±1/√hidden_size.

    Raises:
        ArgumentError: a size or depth that does not fit.

    Example:
        >>> cell = DeepTransition(3, 4, depth=3, output_depth=1)
        >>> cell(torch.zeros(2, 3), cell.zero_state(2, torch.zeros(())))._fields
        ('y', 'h')
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        depth: int = 2,
        input_depth: int = 0,
        output_depth: int = 0,
        shortcut: bool = True,
    ) -> None:
        super().__init__(input_size, hidden_size)
        for name, value, least in (
            ("depth", depth, 1),
            ("input_depth", input_depth, 0),
            ("output_depth", output_depth, 0),
        ):
            if not isinstance(value, int) or value < least:
                raise ArgumentError(f"DeepTransition: {name} must be an integer of at least {least}, not {value!r}.")
        sizes = [input_size, *[hidden_size] * input_depth]
        self.input = nn.ModuleList(nn.Linear(size, hidden_size) for size in sizes[:-1])
        self.W = nn.Linear(sizes[-1], hidden_size)
        self.U = nn.Linear(hidden_size, hidden_size, bias=False)
        self.transition = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(depth - 1))
        self.S = nn.Linear(hidden_size, hidden_size, bias=False) if shortcut and depth > 1 else None
        self.output = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(output_depth))
        uniform_(self)
        _ = self.State  # made here, and not within a captured graph

    @property
    def recurrent(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names of recurrent weights."""
        layers = tuple(f"transition.{number}.weight" for number in range(len(self.transition)))
        return ("U.weight", *layers) if self.S is None else ("U.weight", *layers, "S.weight")

    @property
    def multiplied(self) -> tuple[str, ...]:  # type: ignore[override]
        """The fields that recurrent weights read."""
        return ("h",)

    @property
    def State(self) -> Any:
        return state_type("y", "h") if len(self.output) else state_type("h")

    def forward(self, x: Tensor, s: Any) -> Any:
        before = total(s.h)
        for layer in self.input:
            x = torch.tanh(layer(x))
        h = torch.tanh(self.W(x) + self.U(before))
        for number, layer in enumerate(self.transition):
            h = layer(h)
            if self.S is not None and number == len(self.transition) - 1:
                h = h + self.S(before)
            h = torch.tanh(h)
        y = h
        for layer in self.output:
            y = torch.tanh(layer(y))
        return self.State(y, h) if len(self.output) else self.State(h)
