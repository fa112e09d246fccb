"""Cells around a cell: zoneout, and a cell that reads its own output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ritornello.cells.adapt import name_of
from ritornello.cells.cell import state_type, total
from ritornello.cells.wrapped import Wrapped
from ritornello.errors import ArgumentError, nearest
from ritornello.nn.protocol import check_share


class Zoneout(Wrapped):
    r"""A cell some of whose units stay as they were (Krueger et al. 2017, eq. 2).

    .. math:: s^{(t)} = d \odot s^{(t-1)} + (1 - d) \odot f(s^{(t-1)}, x^{(t)})

    with d drawn anew for every step, unit and sequence: 1 with probability `share`. In evaluation d is its mean.

    Args:
        cell: any cell.
        share: of every field's units, 0 to 1 (exclusive); but for fields that are the cell's alone to write, such as
            the clock of `GroupedRNN` (`Cell.private`).
        shares: of single fields, by name, such as c=0.5, h=0.05 (the paper's, for an LSTM). Default: `share`.

    Shapes:
        As the cell's. Its parameters are called `cell.…`: of a plain cell they load into `zoneout.cell`.
        Over trees what stays is the sum over the predecessors.

    Raises:
        ArgumentError: a share out of range, no share at all, or of a field that the state does not have or that is
            private.

    Example:
        >>> import torch, ritornello as rit
        >>> unfold = rit.Unfold(rit.nn.Zoneout(rit.LSTM(3, 4), c=0.5, h=0.05))
        >>> unfold(torch.randn(5, 2, 3))[0].shape
        torch.Size([5, 2, 4])
    """

    def __init__(self, cell: nn.Module, share: float | None = None, **shares: float) -> None:
        super().__init__(cell)
        fields = self.State._fields
        for name in shares:
            if name not in fields:
                raise ArgumentError(
                    f"Zoneout: {name_of(self.cell)}.State has no field {name!r}: {nearest(name, fields)}."
                )
            if name in self.private:
                raise ArgumentError(
                    f"Zoneout: {name_of(self.cell)} alone writes its {name}, of which nothing is held back: leave it."
                )
        if share is None and not shares:
            raise ArgumentError(f"Zoneout: say a share, or one for a field of {', '.join(fields)}.")
        self.shares = {f: 0.0 if f in self.private else shares.get(f, share or 0.0) for f in fields}
        for name, each in (("share", share or 0.0), *shares.items()):
            check_share("Zoneout", name, each)

    def forward(self, x: Tensor, *s: Any) -> Any:
        new = self.cell(x, *s)
        return self.State(*map(self._kept, zip(*s, strict=True), new, self.shares.values()))

    def _kept(self, before: tuple[Tensor, ...], new: Tensor, share: float) -> Tensor:
        if not share:
            return new
        old = _summed(before)
        if not self.training:
            return share * old + (1 - share) * new
        return torch.where(torch.rand_like(new) < share, old, new)

    def extra_repr(self) -> str:
        return ", ".join(f"{field}={share}" for field, share in self.shares.items())


class SelfFed(Wrapped):
    r"""A cell that reads, beside x, its own last output: real values in free running, on the compiled executor.

    .. math:: h^{(t)} = f(h^{(t-1)}, [x^{(t)}; y^{(t-1)}]) \qquad y^{(t)} = \mathrm{output}(h^{(t)})

    Args:
        cell: any cell; it reads x and y, side by side.
        output: from its output to y, such as `nn.Linear`.

    Shapes:
        x: (rows, cell.input_size - features of y). The state is y and then the cell's; y is the output, and y^(0) is 0
        unless a state says otherwise. Over trees the cell reads the sum of the predecessors' y.

    Raises:
        ArgumentError: an output that does not read what the cell gives, or nothing is left for x.

    Example:
        >>> import torch, ritornello as rit
        >>> unfold = rit.Unfold(rit.nn.SelfFed(rit.LSTM(3 + 2, 4), torch.nn.Linear(4, 2)))
        >>> outputs, last = unfold(torch.randn(7, 5, 3))
        >>> outputs.shape, last._fields
        (torch.Size([7, 5, 2]), ('y', 'h', 'c'))
    """

    def __init__(self, cell: nn.Module, output: nn.Module) -> None:
        super().__init__(cell)
        like = next(self.cell.parameters(), torch.zeros(()))
        try:
            with torch.no_grad():
                self.size = output(like.new_zeros(1, self.cell.output_size)).shape[-1]
        except RuntimeError as error:
            raise ArgumentError(
                f"SelfFed: the cell gives {self.cell.output_size} features, which output cannot read: {error}."
            ) from error
        if self.size >= self.cell.input_size:
            raise ArgumentError(
                f"SelfFed: the cell reads {self.cell.input_size} features and its output has {self.size}; none is left "
                "for x."
            )
        self.output = output
        _ = self.State  # made here, and not within a captured graph

    @property
    def input_size(self) -> int:  # type: ignore[override]
        """Features of x."""
        return self.cell.input_size - self.size

    @property
    def State(self) -> Any:
        """The type of the state."""
        fields = self.cell.State._fields
        return state_type("y" if "y" not in fields else "fed", *fields)

    @property
    def multiplied(self) -> tuple[str, ...]:  # type: ignore[override]
        """y, and what the cell's own recurrent weights read."""
        return (self.State._fields[0], *(self.cell.multiplied or self.cell.State._fields[:1]))

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """Features of each field."""
        return (self.size, *self.cell.state_sizes)

    def forward(self, x: Tensor, *s: Any) -> Any:
        fed = _summed(tuple(each[0] for each in s))
        new = self.cell(torch.cat([x, fed], -1), *(self.cell.State(*each[1:]) for each in s))
        return self.State(self.output(new[0]), *new)


def _summed(before: tuple[Tensor, ...]) -> Tensor:
    """A field over the predecessors: of a cell with slots there is one for each."""
    return total(before[0]) if len(before) == 1 else sum(before[1:], start=before[0])
