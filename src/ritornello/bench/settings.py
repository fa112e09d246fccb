"""What a benchmark is asked to measure."""

from __future__ import annotations

from dataclasses import dataclass

import torch

Shape = tuple[int, int, int]  # steps, sequences, units

DENSE: tuple[Shape, ...] = (
    (50, 50, 128),
    (64, 32, 256),
    (100, 32, 512),
    (100, 128, 64),
    (256, 1, 128),
    (50, 64, 1024),
)
WIDE = tuple(shape for shape in DENSE if shape[2] >= 256)
RAGGED: Shape = (500, 32, 256)
CATALOGUE: tuple[Shape, ...] = ((64, 32, 256),)
LONG: Shape = (10_000, 4, 128)
STREAM = 128
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        cells: names, see `roster.entries`; none: the benchmark's own.
        everyone: the whole catalogue in their place.
        shapes: (steps, sequences, units) of the dense section; the input is as large as the state.
        ragged: (most steps, sequences, units) of the ragged section; lengths are uniform from a tenth of the steps on.
        long: (steps, sequences, units) of the section of cells that are linear in their state.
        first_call: whether to time the first call of each cell.
        bfloat16: shapes at which to time bfloat16 beside float32; the processor must have instructions for it.
        streaming: units of the cell that is timed step by step; 0 for none.
        backward: whether to time forward + backward too.
        dtype: a name of DTYPES.
        threads: of torch, ritornello and JAX.
        seconds: for each case and pass, all contenders together; three turns are taken even if that is longer.
        executor: ritornello's.
        seed: of weights, inputs and lengths.
        scan: whether to time `lax.scan`, where JAX is installed.
    """

    cells: tuple[str, ...] = ()
    everyone: bool = False
    shapes: tuple[Shape, ...] = DENSE
    ragged: Shape | None = RAGGED
    long: Shape | None = None
    first_call: bool = True
    bfloat16: tuple[Shape, ...] = ()
    streaming: int = STREAM
    backward: bool = True
    dtype: str = "float32"
    threads: int = 1
    seconds: float = 2.0
    executor: str = "auto"
    seed: int = 0
    scan: bool = True
