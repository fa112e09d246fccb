"""Initial values of a cell's parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ritornello.cells.cell import Cell


@torch.no_grad()
def uniform_(cell: Cell) -> None:
    """Draws every parameter uniformly from ±1/√hidden_size, in the order they were made, as `torch.nn.LSTM` does."""
    bound = cell.hidden_size**-0.5
    for parameter in cell.parameters():
        nn.init.uniform_(parameter, -bound, bound)


@torch.no_grad()
def add_to_gate_bias_(cell: Cell, bias: Tensor, gate: str, value: float) -> None:
    """Adds `value` to one gate's part of a stacked bias; `cell.gates` says where that part lies."""
    position = cell.gates.index(gate)
    bias.chunk(len(cell.gates))[position].add_(value)
