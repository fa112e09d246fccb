"""What a run of long_memory.py is: a task, a cell and its initialisation, a recipe, and the training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from long_memory_report import Row
from torch import Generator, Tensor, nn

from ritornello import Unfold
from ritornello.cells import Cell, chrono_, find, forget_bias_, orthogonal_
from ritornello.data.synthetic import ADDING_BASELINE, BLANK, DELIMITER, adding, copying, copying_baseline
from ritornello.errors import ArgumentError, nearest

LEAST = 10  # steps of memory
INITS: dict[str, Callable[[Cell, float], Cell]] = {  # of a cell, for dependencies of so many steps
    "orthogonal": lambda cell, longest: orthogonal_(cell),
    "forget": lambda cell, longest: forget_bias_(cell),
    "chrono": chrono_,
}
OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "rmsprop": lambda parameters, lr: torch.optim.RMSprop(parameters, lr, alpha=0.9),
    "adam": torch.optim.Adam,
}


@dataclass(frozen=True)
class Task:
    """A task at one length.

    Attributes:
        inputs, outputs: features that the cell reads, and that the head makes of its output.
        draw: so many examples: x (time, batch, inputs) and what is wanted.
        loss: of a head, the cell's outputs and what is wanted; the score is its mean over the test set.
        test: sequences of the test set.
        baseline: the score of the best answer without memory.
        marks: scores that tell something; the second says that the task is learnt.
        longest: steps that the memory must reach, for initialisers.
    """

    inputs: int
    outputs: int
    draw: Callable[[int, Generator], tuple[Tensor, Tensor]]
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    test: int
    baseline: float
    marks: tuple[float, float]
    longest: float


def adding_task(length: int) -> Task:
    """The sum of two marked numbers, read off the last output; mean squared error."""

    def draw(batch: int, generator: Generator) -> tuple[Tensor, Tensor]:
        return adding(length, batch, generator)

    def loss(head: nn.Module, outputs: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(head(outputs[-1]).squeeze(-1), y)

    return Task(2, 1, draw, loss, 1000, ADDING_BASELINE, (0.1, 0.01), length)


def copying_task(length: int) -> Task:
    """Ten symbols after a delay; cross-entropy, the mean over all steps."""
    kinds, baseline = DELIMITER + 1, copying_baseline(length)

    def draw(batch: int, generator: Generator) -> tuple[Tensor, Tensor]:
        x, y = copying(length, batch, generator)
        return F.one_hot(x, kinds).float(), y

    def loss(head: nn.Module, outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(head(outputs).flatten(0, 1), y.flatten())

    return Task(kinds, BLANK + 1, draw, loss, 500, baseline, (baseline / 2, baseline / 10), 1.5 * length)


TASKS = {"adding": adding_task, "copying": copying_task}


@dataclass(frozen=True)
class Settings:
    """What all runs of a cell at a task share in a file; `every` is the number of steps between two scores."""

    optimiser: str
    lr: float
    units: int = 128
    batch: int = 50
    clip: float = 1.0
    every: int = 100

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "optimiser" and not value > 0:
                raise ArgumentError(f"{name} must be above 0, not {value}.")
        if self.optimiser not in OPTIMISERS:
            raise ArgumentError(f"Unknown optimiser {self.optimiser!r}: {nearest(self.optimiser, OPTIMISERS)}.")


RECIPES = {"adding": Settings("adam", 0.002), "copying": Settings("rmsprop", 0.005)}
LOWER = {  # rates of cells that do not learn at the recipe's, or run away
    ("adding", "irnn"): 0.0005,
    ("copying", "elman"): 0.001,
    ("copying", "irnn"): 0.001,
}


@dataclass(frozen=True)
class Run:
    """One training: a task at a length, a cell, its initialisation ("" is the cell's own), and the seed of the weights
    and the sequences."""

    task: str
    time: int
    cell: str
    init: str
    seed: int

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ArgumentError(f"Unknown task {self.task!r}: {nearest(self.task, TASKS)}.")
        if self.time < LEAST:
            raise ArgumentError(f"time must be at least {LEAST}, not {self.time}: less is no test of memory.")
        if self.init and self.init not in INITS:
            raise ArgumentError(f"Unknown initialisation {self.init!r}: {nearest(self.init, INITS)}.")
        if self.seed < 1:
            raise ArgumentError(f"seed must be at least 1, not {self.seed}: 0 draws the test set.")

    @property
    def contender(self) -> str:
        return f"{self.cell}+{self.init}" if self.init else self.cell

    def recipe(self) -> Settings:
        """The task's, with the cell's own rate where it has one."""
        usual = RECIPES[self.task]
        return replace(usual, lr=LOWER.get((self.task, self.cell.partition("(")[0]), usual.lr))

    def network(self, task: Task, units: int) -> Unfold:
        cell = find(self.cell)(task.inputs, units)
        if self.init:
            if not isinstance(cell, Cell):
                raise ArgumentError(f"{self.cell} is no ritornello.Cell: it has no initialisation {self.init!r}.")
            INITS[self.init](cell, task.longest)
        return Unfold(cell)


def train(run: Run, settings: Settings, steps: int, watch: Callable[[int, float], None]) -> Row:
    """Trains one contender until the task is learnt, the score is no number any more, or the steps are done.

    Args:
        watch: called after every update with its number and the latest score.

    Returns:
        The run's row, with the learning curve as (step, score) pairs.
    """
    began = time.perf_counter()
    torch.manual_seed(run.seed)
    task = TASKS[run.task](run.time)
    network = run.network(task, settings.units)
    head = nn.Linear(network.output_size, task.outputs)
    parameters = [*network.parameters(), *head.parameters()]
    optimiser = OPTIMISERS[settings.optimiser](parameters, lr=settings.lr)
    generator = Generator().manual_seed(run.seed)
    test = task.draw(task.test, Generator().manual_seed(0))

    @torch.no_grad()
    def score() -> float:
        parts = zip(test[0].split(100, 1), test[1].split(100, -1), strict=True)
        return sum(task.loss(head, network(x)[0], y).item() * x.shape[1] for x, y in parts) / task.test

    curve, end, step = [(0, score())], "steps", 0
    while end == "steps" and step < steps:
        x, y = task.draw(settings.batch, generator)
        loss = task.loss(head, network(x)[0], y)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, settings.clip)
        optimiser.step()
        step += 1
        watch(step, curve[-1][1])
        if step % settings.every == 0 or step == steps:
            found = score()
            if not math.isfinite(found):
                end = "diverged"
                break
            curve.append((step, found))
            end = "learnt" if found < task.marks[1] else end
    seconds = round(time.perf_counter() - began, 1)
    told = {"end": end, "steps": step, "seconds": seconds, "baseline": task.baseline, "marks": task.marks}
    return {**asdict(run), **asdict(settings), **told, "curve": curve}
