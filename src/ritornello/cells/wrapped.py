"""A cell around a cell."""

from __future__ import annotations

from typing import Any

from torch import nn

from ritornello.cells.adapt import Adapted
from ritornello.cells.cell import Cell


class Wrapped(Cell):
    """A cell around a cell, which has its sizes, its state, and what initialisers and regularisers ask about it."""

    def __init__(self, cell: nn.Module) -> None:
        cell = cell if isinstance(cell, Cell) else Adapted(cell)
        nn.Module.__init__(self)  # its sizes are asked of the cell, not kept
        self.cell = cell
        self.slots = cell.slots

    @property
    def input_size(self) -> int:  # type: ignore[override]
        """Features of x."""
        return self.cell.input_size

    @property
    def hidden_size(self) -> int:  # type: ignore[override]
        """As the cell's."""
        return self.cell.hidden_size

    @property
    def State(self) -> Any:
        """The type of the state."""
        return self.cell.State

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """Features of each field."""
        return self.cell.state_sizes

    @property
    def gates(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.cell.gates

    @property
    def keeps(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.cell.keeps

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.cell.writes

    @property
    def gate_bias(self) -> str:  # type: ignore[override]
        return f"cell.{self.cell.gate_bias}"

    @property
    def recurrent(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(f"cell.{name}" for name in self.cell.recurrent)

    @property
    def multiplied(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.cell.multiplied

    @property
    def private(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.cell.private
