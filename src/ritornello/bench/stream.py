"""Streams: one row, one step after the other, from Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ritornello.bench.contenders import CELL, NN, OURS, Case, module_of
from ritornello.engine import Unfold
from ritornello.errors import ArgumentError

Walk = Callable[..., list[Tensor]]  # (keep=True) to the output of each step; none are kept without


def _walk(case: Case, step: Callable[[Tensor, Any], tuple[Tensor, Any]]) -> Walk:
    rows = [row.contiguous() for row in case.x]

    def walk(keep: bool = True) -> list[Tensor]:
        outputs, state = [], None
        with torch.inference_mode():
            for row in rows:
                output, state = step(row, state)
                if keep:
                    outputs.append(output.clone())
        return outputs

    walk()
    return walk


def ours(case: Case) -> Walk | str:
    """ritornello's stepper; the reason where a cell has none."""
    try:
        step = Unfold(case.cell).stepper()
    except ArgumentError as error:
        return str(error)
    return _walk(case, step)


def called(case: Case) -> Walk:
    """The cell, called as it is written."""
    cell, zero = case.cell, case.cell.zero_state(1, case.x)

    def step(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        new = cell(x, zero if state is None else state)
        return new[0], new

    return _walk(case, step)


def torch_cell(case: Case) -> Walk | str:
    """torch.nn's LSTMCell, GRUCell or RNNCell; the reason where it has no such cell."""
    module = module_of(case.cell)
    if module is None:
        return f"{NN} has no such cell."
    kind: Any = {nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell, nn.RNN: nn.RNNCell}[type(module)]
    cell = kind(module.input_size, module.hidden_size).to(case.x.dtype)
    weights = module.state_dict()
    cell.load_state_dict({name: weights[f"{name}_l0"] for name in cell.state_dict()})

    def step(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        new = cell(x, state)
        return new[0] if isinstance(new, tuple) else new, new

    return _walk(case, step)


WALKERS: dict[str, Callable[[Case], Walk | str]] = {OURS: ours, NN: torch_cell, CELL: called}
