"""Which cells learn to remember for hundreds of steps, and after how many updates?

    python benchmarks/long_memory.py [--task adding copying] [--time T ...] [--cell NAME[+INIT] ...] [--seed 1 ...]
                                     [--steps 6000] [--out long_memory.jsonl] [--threads 1]
    python benchmarks/long_memory.py --out long_memory.jsonl --table
    python benchmarks/long_memory.py --out long_memory.jsonl --plot curves.png

Trains each cell (any of the catalogue, such as "gru(reset=before)", or module:Class) from each initialisation on the
adding and the copying task (`ritornello.data.synthetic`): fresh sequences every step, the same for all with one seed. A
run ends when the score on held-out sequences says that the task is learnt, or after --steps updates. Each run becomes a
row of the file; what is there is not run again, so that hours of runs can be interrupted, and two processes with
different tasks can share the file. With --table or --plot nothing is trained: they show the file.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from long_memory_report import Row, plot, table
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Generator, Tensor, nn

from ritornello import Unfold
from ritornello.cells import Cell, chrono_, find, forget_bias_, orthogonal_
from ritornello.data.synthetic import ADDING_BASELINE, BLANK, DELIMITER, adding, copying, copying_baseline
from ritornello.errors import ArgumentError, RitornelloError, RunError, nearest

LEAST = 10  # steps of memory
CONTENDERS = ("elman", "elman+orthogonal", "irnn", "lstm", "lstm+chrono", "gru", "gru+chrono")
INITS: dict[str, Callable[[Cell, float], Cell]] = {  # of a cell, for dependencies of so many steps
    "orthogonal": lambda cell, longest: orthogonal_(cell),
    "forget": lambda cell, longest: forget_bias_(cell),
    "chrono": chrono_,
}
Kind = TypeVar("Kind")
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
LENGTHS = {"adding": (200, 600), "copying": (100, 500)}


@dataclass(frozen=True)
class Settings:
    """What all runs of a task in a file share; `every` is the number of steps between two scores."""

    units: int = 128
    batch: int = 50
    optimiser: str = "rmsprop"
    lr: float = 1e-3
    clip: float = 1.0
    every: int = 100

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "optimiser" and not value > 0:
                raise ArgumentError(f"{name} must be above 0, not {value}.")
        if self.optimiser not in OPTIMISERS:
            raise ArgumentError(f"Unknown optimiser {self.optimiser!r}: {nearest(self.optimiser, OPTIMISERS)}.")


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


def part(kind: type[Kind], row: Row) -> Kind:
    """What a row, or the options, say of a run or of settings."""
    return kind(**{field.name: row[field.name] for field in fields(kind)})  # type: ignore[arg-type]


def read(path: Path) -> dict[Run, Row]:
    """The rows of the file; of two of the same run the later, which had more steps."""
    rows = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines() if path.exists() else [], 1):
        try:
            row = json.loads(line)
            row["settings"] = part(Settings, row)
            rows[part(Run, row)] = row
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path}, line {number}, is no run ({error!r}); delete that line.") from None
    return rows


def missing(runs: list[Run], settings: Settings, steps: int, path: Path) -> list[Run]:
    """The runs that the file does not answer. Of each task, all that it holds must have been made alike."""
    done, tasks = read(path), {run.task for run in runs}
    for run, row in done.items():
        if run.task in tasks and row["settings"] != settings:
            raise RunError(f"{path} holds {run.task} by {row['settings']}, not {settings}; name another file by --out.")
    return [run for run in runs if run not in done or (done[run]["end"] == "steps" and done[run]["steps"] < steps)]


def perform(runs: list[Run], settings: Settings, steps: int, path: Path) -> None:
    """Trains what is missing and adds a row of each to the file."""
    if steps < 1:
        raise ArgumentError(f"steps must be at least 1, not {steps}.")
    for run in runs:  # a wrong name is told before the first hour, not after
        run.network(TASKS[run.task](run.time), settings.units)
    todo, console = missing(runs, settings, steps, path), Console(stderr=True)
    path.open("a").close()
    console.print(f"{len(runs) - len(todo)} of {len(runs)} runs are in {path}", highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn(), TextColumn("{task.fields[note]}"))  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        total, current = (progress.add_task(name, total=None, note="") for name in ("runs", "steps"))
        for number, run in enumerate(todo):
            name = f"{run.task} {run.time} {run.contender} seed {run.seed}"
            progress.update(total, total=len(todo), completed=number)
            progress.reset(current, total=steps, description=name)

            def watch(step: int, score: float) -> None:
                progress.update(current, completed=step, note=f"score {score:.4f}")

            row = train(run, settings, steps, watch)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            score, seconds = row["curve"][-1][1], row["seconds"]
            console.print(f"{name}: {row['end']} at {row['steps']:,}, {score:.4f}, {seconds} s", highlight=False)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", default=list(TASKS))
    parser.add_argument("--time", type=int, nargs="+", help="adding's length, copying's delay; default: the usual ones")
    parser.add_argument(
        "--cell", nargs="+", default=CONTENDERS, metavar="NAME[+INIT]", help="INIT: " + ", ".join(INITS)
    )
    parser.add_argument("--seed", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, default=6000)
    for field in fields(Settings):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("long_memory.jsonl"))
    parser.add_argument("--table", action="store_true", help="print the file's runs as Markdown")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the file's learning curves")
    options = parser.parse_args(arguments)
    try:
        if options.table or options.plot:
            places = {name: place for place, name in enumerate(CONTENDERS)}
            found = read(options.out)
            rows = [found[run] for run in sorted(found, key=lambda run: places.get(run.contender, len(places)))]
            if not rows:
                raise RunError(f"{options.out} holds no runs yet.")
            if options.table:
                print(table(rows))
            if options.plot:
                plot(rows, options.plot)
            return
        if not 1 <= options.threads <= 1024:
            raise ArgumentError(f"threads must be 1 to 1024, not {options.threads}.")
        torch.set_num_threads(options.threads)
        runs = []
        for seed, task in product(options.seed, options.task):
            for length, name in product(options.time or LENGTHS.get(task, [LEAST]), options.cell):
                cell, _, init = name.partition("+")
                runs.append(Run(task, length, cell, init, seed))
        perform(list(dict.fromkeys(runs)), part(Settings, vars(options)), options.steps, options.out)
    except (RitornelloError, OSError) as error:
        what = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
        print(f"long_memory: {what}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
