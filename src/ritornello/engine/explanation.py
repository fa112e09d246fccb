"""What becomes of a cell, and why."""

from __future__ import annotations

import sys
from typing import Any, TextIO

import torch
from torch import nn

from ritornello.cells.adapt import Adapted, name_of
from ritornello.cells.cell import Cell
from ritornello.engine.unfold import Unfold
from ritornello.errors import ArgumentError
from ritornello.executors import EXECUTORS
from ritornello.executors.cpu import CpuExecutor
from ritornello.program.show import show


def explain(cell: nn.Module, file: TextIO | None = None) -> None:
    """Prints what becomes of a cell: its program, what left the loop, what is kept, its cost, its executor and why.

    Args:
        cell: a cell, a module like one, or an `Unfold`, whose adjoint is told too.
        file: where to print; standard output by default.

    Raises:
        ArgumentError: something that is no module.

    Example:
        >>> import ritornello as rit
        >>> rit.explain(rit.Elman(3, 4))
        Elman: x of 3 features, state h (4)
        executor: cpu (...)
        <BLANKLINE>
        before the loop, for all rows at once:
          v₁ : 4 = W.bias + x @ W.weight.T
        in the loop:
          v₂ : 4 = v₁ + h' @ U.weight.T
          v₃ : 4 = tanh(v₂)
          h = v₃
        <BLANKLINE>
        forward: 56 flops a row in products, 43% of them before the loop, ...
    """
    adjoint = cell.adjoint if isinstance(cell, Unfold) else None
    if isinstance(cell, Unfold):
        cell = cell.cell
    if not isinstance(cell, nn.Module):
        raise ArgumentError(f"explain takes a cell, a module like one, or an Unfold, not {type(cell).__name__}.")
    if not isinstance(cell, Cell):
        cell = Adapted(cell)
    print(_explained(cell), file=file or sys.stdout)
    if adjoint is not None:
        print(f"adjoint: {adjoint}: {adjoint.gist}", file=file or sys.stdout)


def _explained(cell: Cell) -> str:
    name = name_of(cell)
    fields: Any = cell.State._fields
    sizes = ", ".join(f"{field} ({size})" for field, size in zip(fields, cell.state_sizes, strict=True))
    head = f"{name}: x of {cell.input_size} features, state {sizes}"
    executor = EXECUTORS["cpu"]
    assert isinstance(executor, CpuExecutor)
    like = next(cell.parameters(), torch.zeros(()))
    reason = executor.plan_or_reason(cell, cell.input_size, tuple(cell.state_sizes), like)
    if isinstance(reason, str):
        return f"{head}\nexecutor: reference, for {reason}"
    from ritornello import _core

    return f"{head}\nexecutor: cpu ({_core.instruction_set()})\n\n{show(reason.program, fields)}"
