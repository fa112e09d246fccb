"""Who runs: cells by name, and strangers from a file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from ritornello.bench.cells import Ferry
from ritornello.cells import CELLS, GRU, Adapted, Cell, catalogue
from ritornello.errors import ArgumentError, nearest

Make = Callable[[int, int], Cell]

ROSTER: dict[str, Make] = {
    "elman": CELLS["elman"],
    "gru": CELLS["gru"],
    "gru-before": partial(GRU, reset="before"),
    **{name: CELLS[name] for name in ("lstm", "peephole", "layer-norm", "coupled", "multiplicative")},
    "made-up": Ferry,
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
    """The cells of those names; without names the benchmark's own, or with `everyone` the whole catalogue.

    Args:
        names: of the benchmark or the catalogue, also with options, or `FILE.py:Class` or `module:Class`, which is
            imported.

    Raises:
        ArgumentError: an unknown name, or a class that is no cell.
    """
    if not names:
        names = list(CELLS if everyone else ROSTER)
    known: dict[str, Make] = {**CELLS, **ROSTER}
    found = []
    for name in dict.fromkeys(names):
        if name in known:
            found.append(Entry(name, known[name]))
        elif "(" in name or ":" in name:
            found.append(Entry(name, stranger(name)))
        else:
            raise ArgumentError(f"Unknown cell {name!r}: {nearest(name, known)}; or name your own as FILE.py:Class.")
    return found


def stranger(name: str) -> Make:
    """A cell with options, or a class of somebody's own: a `Cell`, or any module that is called like one.

    Raises:
        ArgumentError: no such file, module, class or option, or a class that is no module.
    """
    kind = catalogue.find(name)

    def make(input_size: int, hidden_size: int) -> Cell:
        try:
            module: Any = kind(input_size, hidden_size)
        except TypeError as error:
            raise ArgumentError(f"{name} cannot be made with (input_size, hidden_size): {error}.") from error
        return module if isinstance(module, Cell) else Adapted(module, input_size)

    return make
