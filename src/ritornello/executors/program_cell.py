"""A program in place of the cell that it was traced from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ritornello.program import Program, Value, interpret, philox


class ProgramCell:
    """Called like a cell, it interprets a program. Its parameter values are given, and so is the seed of what it draws.

    The rows of a structure are numbered in the order of the calls, as the compiled machine numbers them.
    """

    def __init__(self, program: Program, kind: Any, values: Mapping[Value, Tensor], seed: int) -> None:
        fields = len(program.fields)
        self.program = program._replace(results=program.results[:fields])
        self.kind, self.values, self.seed = kind, values, seed
        self.first_row = 0

    def __call__(self, x: Tensor, state: Any) -> Any:
        rows = torch.arange(self.first_row, self.first_row + len(x), device=x.device)
        self.first_row += len(x)

        def uniform(stream: int, size: int) -> Tensor:
            return philox(self.seed, rows, stream, size).to(x.dtype)

        found = interpret(self.program, x, [state], self._unknown, uniform, self.values)
        return self.kind(*(found[value].expand(len(x), -1) for value in self.program.results))

    @staticmethod
    def _unknown(name: str) -> Tensor:
        raise AssertionError(f"the program reads {name!r}, whose value was not given")
