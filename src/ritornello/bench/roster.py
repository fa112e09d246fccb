"""Who runs: cells by name, and strangers from a file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from ritornello.bench import cells as own
from ritornello.cells import CELLS, GRU, LSTM, Adapted, Cell, Elman, catalogue, is_foreign
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
    """A class of somebody's own: a `Cell`, or any module that is called like one.

    Raises:
        ArgumentError: no such file, module or class, or a class that is no module.
    """
    kind = catalogue.find(name)

    def make(input_size: int, hidden_size: int) -> Cell:
        try:
            module: Any = kind(input_size, hidden_size)
        except TypeError as error:
            raise ArgumentError(f"{name} cannot be made with (input_size, hidden_size): {error}.") from error
        return module if isinstance(module, Cell) else Adapted(module, input_size)

    return make
