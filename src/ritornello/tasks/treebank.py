"""What the tasks share that learn from files of trees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn

from ritornello.errors import ArgumentError, DataError
from ritornello.training.run import Run

PARTS = ("train", "valid", "test")


def check_parts(config: Any) -> None:
    """Raises ArgumentError unless the configuration names trees to learn from and to be judged by."""
    for part, what in (("train", "learn from"), ("valid", "be judged by")):
        if not getattr(config, part):
            raise ArgumentError(f"There are no trees to {what}: name files of them with --{part}.")


class Shuffled:
    """Batches in an order that is drawn anew for each epoch from the seed, with no state carried between them.

    Args:
        count: trees or sentences in all.
        batch: of them side by side.
        seed: of the order.
    """

    def __init__(self, count: int, batch: int, seed: int) -> None:
        self.count, self.batch, self.seed = count, batch, seed

    def some(self, which: np.ndarray) -> Any:
        """Those as a batch."""
        raise NotImplementedError

    def windows(self) -> int:
        return -(-self.count // self.batch)

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        order = np.random.default_rng((self.seed, epoch)).permutation(self.count)
        for number in range(start, self.windows()):
            yield self.some(order[number * self.batch : (number + 1) * self.batch])

    def blank(self, model: nn.Module) -> None:
        return None


class TreebankRun:
    """A trained model in use, whose run folder holds its own trees.

    Attributes:
        run: its folder and configuration.
        model: the network.
        interrupted: whether Ctrl-C ended its training early.
        columns: the heading and format of each score.
        scoring: the options of `evaluate`.
    """

    columns: ClassVar[dict[str, tuple[str, str]]]
    scoring: ClassVar[tuple[str, ...]] = ()

    def __init__(self, run: Run, model: Any) -> None:
        self.run, self.model = run, model
        self.interrupted = False

    def parts(self) -> list[str]:
        """Which parts of the run's own trees there are."""
        return [part for part in PARTS if (self.run.path / f"{part}.txt").exists()]

    def own(self, trees: str | Path | Sequence[str | Path]) -> Path | None:
        """The file of a part of the run's own trees; None for what is no part's name.

        Raises:
            DataError: the run lacks that part.
        """
        if not isinstance(trees, str) or trees not in PARTS:
            return None
        if trees not in self.parts():
            raise DataError(f"{self.run.path} has no {trees} part; it has {', '.join(self.parts())}.")
        return self.run.path / f"{trees}.txt"
