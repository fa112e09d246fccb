"""Who runs: cells by name, and strangers from a file."""

from __future__ import annotations

import inspect
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ritornello.bench import cells as own
from ritornello.cells import CELLS, GRU, LSTM, Cell, Elman, catalogue, is_foreign
from ritornello.errors import ArgumentError, nearest

Make = Callable[[int, int], Cell]

ROSTER: dict[str, Make] = {
    "elman": Elman,
    "gru": GRU,
    "gru-before": partial(GRU, reset="before"),
    "lstm": LSTM,
    "peephole": own.PeepholeLSTM,
    "layer-norm": own.LayerNormLSTM,
    "coupled": own.CoupledLSTM,
    "multiplicative": own.MultiplicativeLSTM,
    "made-up": own.Ferry,
}


class Entry(NamedTuple):
    """A cell to measure.

    Attributes:
        name: as it was asked for.
        make: from (input_size, hidden_size) to the cell.
    """

    name: str
    make: Make


def entries(names: list[str], everyone: bool = False) -> list[Entry]:
    """The cells of those names; without names the benchmark's own, and with `everyone` the whole catalogue too.

    Args:
        names: of the benchmark or the catalogue, or `FILE.py:Class` or `module:Class`, which is imported.

    Raises:
        ArgumentError: an unknown name, or a class that is no cell.
    """
    known: dict[str, Make] = {**CELLS, **ROSTER}
    if not names:
        names = list(ROSTER) + [name for name in CELLS if name not in ROSTER and everyone]
    found = []
    for name in dict.fromkeys(names):
        if is_foreign(name):
            found.append(Entry(name, stranger(name)))
        elif name in known:
            found.append(Entry(name, known[name]))
        else:
            raise ArgumentError(f"Unknown cell {name!r}: {nearest(name, known)}; or name your own as FILE.py:Class.")
    return found


def stranger(name: str) -> Make:
    """A class of somebody's own: a `Cell`, or any module that is made and called like one of torch's cells.

    Raises:
        ArgumentError: no such file, module or class, or a class that is no module.
    """
    try:
        return catalogue.find(name)
    except ArgumentError:
        module_name, class_name = name.rsplit(":", 1)
        is_file = module_name.endswith(".py")
        load = (
            partial(catalogue._load_file, Path(module_name))
            if is_file
            else partial(catalogue._load_module, module_name)
        )
        found: Any = getattr(load(), class_name, None)
        if not (inspect.isclass(found) and issubclass(found, nn.Module)) or issubclass(found, Cell):
            raise
        return partial(Plain, found)


class Plain(Cell):
    """A module that is no `Cell`, called like one.

    Its state is its own `State`, or in torch's manner a tensor h or a pair (h, c).

    Raises:
        ArgumentError: it cannot be made with (input_size, hidden_size), or answers neither manner of call.
    """

    def __init__(self, kind: type[nn.Module], input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        try:
            self.inner = kind(input_size, hidden_size)
        except TypeError as error:
            raise ArgumentError(f"{kind.__name__} cannot be made with (input_size, hidden_size): {error}.") from error
        self.manner, self.State = self._manner()

    def _manner(self) -> tuple[str, Any]:
        if hasattr(self.inner, "State"):
            return "state", self.inner.State
        x, h = torch.zeros(1, self.input_size), torch.zeros(1, self.hidden_size)
        said = ""
        for manner, state, fields in (("pair", (h, h), "h c"), ("tensor", h, "h")):
            try:
                new = self.inner(x, state)
            except Exception as error:
                said = f"{type(error).__name__}: {error}".splitlines()[0]
                continue
            if (len(new) == 2 and isinstance(new, tuple)) if manner == "pair" else isinstance(new, Tensor):
                return manner, namedtuple("State", fields)
        raise ArgumentError(
            f"{type(self.inner).__name__} has no State and answers neither a tensor h nor a pair (h, c) ({said})."
        )

    @property
    def state_sizes(self) -> tuple[int, ...]:
        return getattr(self.inner, "state_sizes", super().state_sizes)

    def forward(self, x: Tensor, s: Any) -> Any:
        if self.manner == "state":
            return self.inner(x, s)
        return self.State(*self.inner(x, tuple(s))) if self.manner == "pair" else self.State(self.inner(x, s[0]))
