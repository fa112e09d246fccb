"""A program in place of the cell that it was traced from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ritornello.executors.plan import Plan
from ritornello.program import Program, Value, interpret, philox


class ProgramCell:
    """Called like a cell, it interprets a program. Its parameter values are given, and so is the seed of what it draws.

    The rows of a structure are numbered in the order of the calls, as the compiled machine numbers them.
    """

    def __init__(self, program: Program, kind: Any, values: Mapping[Value, Tensor], seed: int | None) -> None:
        self.program, self.kind, self.values, self.seed = program, kind, values, seed
        self.first_row = 0

    def __call__(self, x: Tensor, state: Any) -> Any:
        several = x.dim() == 3  # predecessors, on an axis of their own
        x = x.squeeze(1) if several else x
        states = [[field[:, slot] if several else field for field in state] for slot in range(self.program.slots)]
        rows = torch.arange(self.first_row, self.first_row + len(x), device=x.device)
        self.first_row += len(x)

        def uniform(stream: int, size: int) -> Tensor:
            if self.seed is None:  # not drawn before it is needed: the compiled machine draws its own
                self.seed = int(torch.randint(2**62, ()))
            return philox(self.seed, rows, stream, size).to(x.dtype)

        results = self.program.results[: len(self.program.fields)]
        found = interpret(self.program._replace(results=results), x, states, self._find, uniform, self.values)
        new = [found[value].expand(len(x), -1) for value in results]
        return self.kind(*(field.unsqueeze(1) if several else field for field in new))

    def _find(self, name: str) -> Tensor:
        raise AssertionError(f"the program reads {name!r}, whose value was not given")


class BoundCell(ProgramCell):
    """A plan, and its parameters by name: what executors take in place of a cell whose parameters live elsewhere.

    Attributes:
        plan: of the program.
        named: tensors by the names that the program knows them by.
    """

    def __init__(self, plan: Plan, kind: Any, named: Mapping[str, Tensor]) -> None:
        super().__init__(plan.program, kind, {}, None)
        self.plan, self.named = plan, named

    def parameters(self) -> Iterable[Tensor]:
        """As of a module."""
        return self.named.values()

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self.__dict__["named"][name]
        except KeyError:
            raise AttributeError(name) from None

    def _find(self, name: str) -> Tensor:
        return self.named[name]
