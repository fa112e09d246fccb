"""Tasks of long memory whose examples are generated: a generator with the same seed draws the same."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from ritornello.errors import ArgumentError

SYMBOLS = 8  # of copying's alphabet: 0 to 7
BLANK = 8
DELIMITER = 9
LENGTH = 10  # symbols that are to be copied

ADDING_BASELINE = 1 / 6


def adding(time: int, batch: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Sequences of numbers, two of them marked, one in each half; wanted at the end is the sum of the two.

    Hochreiter & Schmidhuber (1997), "Long short-term memory", section 5.4, as Le, Jaitly & Hinton (2015), "A simple way
    to initialize recurrent networks of rectified linear units", set it. The constant 1, the best answer without memory,
    has the mean squared error `ADDING_BASELINE`, 1/6: the variance of the sum.

    Args:
        time: steps of a sequence, at least 2.
        batch: sequences.
        generator: draws the numbers, uniform in [0, 1), then the two places, uniform in steps 0 to time // 2 - 1 and
            time // 2 to time - 1.

    Returns:
        x: (time, batch, 2): at each step a number, and 1 where it is marked, 0 elsewhere.
        y: (batch,), the sums.

    Raises:
        ArgumentError: a time below 2 or a batch below 1.

    Example:
        >>> x, y = adding(6, 3, torch.Generator().manual_seed(1))
        >>> x.shape, x[..., 1].sum(0).tolist()
        (torch.Size([6, 3, 2]), [2.0, 2.0, 2.0])
        >>> torch.equal(x.prod(-1).sum(0), y)
        True
    """
    _check("adding", "time", time, 2)
    _check("adding", "batch", batch, 1)
    device, half = generator.device, time // 2
    numbers = torch.rand(time, batch, generator=generator, device=device)
    early = torch.randint(half, (1, batch), generator=generator, device=device)
    late = torch.randint(half, time, (1, batch), generator=generator, device=device)
    places = torch.cat([early, late])
    marks = torch.zeros_like(numbers).scatter_(0, places, 1.0)
    return torch.stack([numbers, marks], -1), numbers.gather(0, places).sum(0)


def copying(delay: int, batch: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Sequences of ten symbols, a delay and a delimiter; wanted after the delimiter are the ten symbols.

    Hochreiter & Schmidhuber (1997) as Arjovsky, Shah & Bengio (2016), "Unitary evolution recurrent neural networks",
    section 5.1, set it. x is 10 `SYMBOLS`, delay - 1 times `BLANK`, `DELIMITER`, 10 times `BLANK`; y is `BLANK` but for
    the last ten steps. Every symbol is asked for delay + 10 steps after it came.

    Args:
        delay: T, at least 1.
        batch: sequences.
        generator: draws the symbols.

    Returns:
        x: (delay + 20, batch), integers 0 to 9.
        y: (delay + 20, batch), integers 0 to 8.

    Raises:
        ArgumentError: a delay or batch below 1.

    Example:
        >>> x, y = copying(3, 1, torch.Generator().manual_seed(1))
        >>> x.squeeze().tolist()
        [5, 3, 4, 0, 7, 1, 3, 5, 7, 0, 8, 8, 9, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8]
        >>> y.squeeze().tolist()
        [8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 5, 3, 4, 0, 7, 1, 3, 5, 7, 0]
    """
    _check("copying", "delay", delay, 1)
    _check("copying", "batch", batch, 1)
    symbols = torch.randint(SYMBOLS, (LENGTH, batch), generator=generator, device=generator.device)
    blank = symbols.new_full((delay + LENGTH, batch), BLANK)
    x = torch.cat([symbols, blank])
    x[LENGTH + delay - 1] = DELIMITER
    return x, torch.cat([blank, symbols])


def copying_baseline(delay: int) -> float:
    """The cross-entropy a step, in nats, of the best answer without memory: blanks, then each symbol alike.

    >>> round(copying_baseline(100), 4)
    0.1733
    """
    return LENGTH * math.log(SYMBOLS) / (delay + 2 * LENGTH)


def _check(task: str, name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise ArgumentError(f"{task}: {name} must be an integer of at least {least}, not {value!r}.")
