"""Networks whose output is fed back."""

from __future__ import annotations

from collections import namedtuple
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ritornello.cells.cell import Cell, total
from ritornello.cells.initialise import uniform_
from ritornello.cells.wrapped import Wrapped
from ritornello.errors import ArgumentError, nearest

OUTPUTS = {
    "identity": lambda o: o,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softmax": lambda o: torch.softmax(o, -1),
}


class Jordan(Cell):
    r"""Output to hidden: the only memory is the output, fed back.

    .. math:: h &= \tanh(W x + R o' + b) & o &= f(V h + c)

    Jordan (1986), "Serial order: a parallel distributed processing approach"; Goodfellow, Bengio & Courville, figure
    10.4. Weaker than hidden to hidden, for the output must hold all that is remembered; but with the true outputs in
    place of its own (`TeacherForced`) no step waits for another, and all train at once.

    Args:
        input_size: features of x.
        hidden_size: features of h, which is no state here.
        output_size: features of o. Default: hidden_size.
        output: f, "identity" (default), "tanh", "sigmoid" or "softmax".

    Shapes:
        x (rows, input_size), s.o (rows, output_size). Parameters: W.weight (hidden_size, input_size), W.bias
        (hidden_size), R.weight (hidden_size, output_size), V.weight (output_size, hidden_size), V.bias (output_size),
        each uniform in ±1/√hidden_size.

    Raises:
        ArgumentError: a size that is no positive integer, or an unknown output.

    Example:
        >>> cell = Jordan(3, 4, output_size=2)
        >>> cell(torch.zeros(5, 3), cell.zero_state(5, torch.zeros(()))).o.shape
        torch.Size([5, 2])
    """

    State: Any = namedtuple("State", "o")
    recurrent: ClassVar[tuple[str, ...]] = ("R.weight",)

    def __init__(
        self, input_size: int, hidden_size: int, output_size: int | None = None, output: str = "identity"
    ) -> None:
        super().__init__(input_size, hidden_size)
        outputs = hidden_size if output_size is None else output_size
        if not isinstance(outputs, int) or outputs < 1:
            raise ArgumentError(f"{type(self).__name__}: output_size must be a positive integer, not {outputs!r}.")
        if output not in OUTPUTS:
            raise ArgumentError(f"{type(self).__name__}: unknown output {output!r}: {nearest(str(output), OUTPUTS)}.")
        self.outputs, self.output = outputs, output
        self.W = nn.Linear(input_size, hidden_size)
        self.R = nn.Linear(outputs, hidden_size, bias=False)
        self.V = nn.Linear(hidden_size, outputs)
        uniform_(self)

    @property
    def state_sizes(self) -> tuple[int, ...]:
        return (self.outputs,)

    def forward(self, x: Tensor, s: Any) -> Any:
        h = torch.tanh(self.W(x) + self.R(total(s.o)))
        return self.State(OUTPUTS[self.output](self.V(h)))


class ElmanJordan(Jordan):
    r"""Hidden to hidden and output to hidden, both together.

    .. math:: h &= \tanh(W x + U h' + R o' + b) & o &= f(V h + c)

    Goodfellow, Bengio & Courville, figure 10.3 and 10.4 in one. Arguments, shapes and errors as `Jordan`'s; besides,
    s.h (rows, hidden_size) and U.weight (hidden_size, hidden_size).

    Example:
        >>> cell = ElmanJordan(3, 4, output_size=2)
        >>> [tuple(field.shape) for field in cell(torch.zeros(5, 3), cell.zero_state(5, torch.zeros(())))]
        [(5, 2), (5, 4)]
    """

    State = namedtuple("State", "o h")
    recurrent = ("R.weight", "U.weight")
    multiplied = ("o", "h")

    def __init__(
        self, input_size: int, hidden_size: int, output_size: int | None = None, output: str = "identity"
    ) -> None:
        super().__init__(input_size, hidden_size, output_size, output)
        self.U = nn.Linear(hidden_size, hidden_size, bias=False)
        uniform_(self)

    @property
    def state_sizes(self) -> tuple[int, ...]:
        return (self.outputs, self.hidden_size)

    def forward(self, x: Tensor, s: Any) -> Any:
        h = torch.tanh(self.W(x) + self.U(total(s.h)) + self.R(total(s.o)))
        return self.State(OUTPUTS[self.output](self.V(h)), h)


class TeacherForced(Wrapped):
    r"""A cell that reads the true output of the step before in place of its own.

    .. math:: s = f(x, (y', s'_2, …))

    with y' the target of the step before, which comes behind x in the input: [x, y']. From log p(y⁽¹⁾, y⁽²⁾ | x) =
    log p(y⁽²⁾ | y⁽¹⁾, x) + log p(y⁽¹⁾ | x) it follows that the likelihood is trained so; Goodfellow, Bengio &
    Courville, section 10.2.1. Of a network with no other memory, such as `Jordan`, nothing is left in the loop
    (`ritornello.explain` shows it).

    Args:
        cell: shares its parameters: train with this one, then let the cell run by itself.

    Shapes:
        x (rows, cell.input_size + cell.output_size): [x, y']. The state is the cell's.

    Raises:
        ArgumentError: what is given is no `Cell`.

    Example:
        >>> import ritornello as rit
        >>> cell = Jordan(3, 4, output_size=2)
        >>> x, y = torch.randn(5, 1, 3), torch.randn(5, 1, 2)
        >>> before = torch.cat([torch.zeros(1, 1, 2), y[:-1]])
        >>> outputs, _ = rit.Unfold(TeacherForced(cell))(torch.cat([x, before], -1))
        >>> outputs.shape
        torch.Size([5, 1, 2])
    """

    def __init__(self, cell: Cell) -> None:
        if not isinstance(cell, Cell):
            raise ArgumentError(f"TeacherForced takes a ritornello.Cell, not {type(cell).__name__}.")
        super().__init__(cell)

    @property
    def input_size(self) -> int:  # type: ignore[override]
        return self.cell.input_size + self.cell.output_size

    def forward(self, x: Tensor, s: Any) -> Any:
        x, y = x.split((self.cell.input_size, self.cell.output_size), -1)
        return self.cell(x, self.State(y, *s[1:]))
