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
import sys
from dataclasses import asdict, fields, replace
from itertools import product
from pathlib import Path
from typing import TypeVar

import torch
from long_memory_report import Row, plot, table
from long_memory_runs import INITS, LEAST, RECIPES, TASKS, Run, Settings, train
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ritornello.errors import ArgumentError, RitornelloError, RunError

CONTENDERS = ("elman", "elman+orthogonal", "irnn", "lstm", "lstm+chrono", "gru", "gru+chrono")
LENGTHS = {"adding": (200, 600), "copying": (100, 500)}
Kind = TypeVar("Kind")


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


def missing(runs: dict[Run, Settings], steps: int, path: Path) -> list[Run]:
    """The runs that the file does not answer. Its runs of a cell at a task must all have been made alike."""
    done, asked = read(path), {(run.task, run.cell): settings for run, settings in runs.items()}
    for run, row in done.items():
        had, wants = row["settings"], asked.get((run.task, run.cell), row["settings"])
        if had != wants:
            raise RunError(f"{path} holds {run.task} by {run.cell}, {had}, not {wants}; name another file by --out.")
    return [run for run in runs if run not in done or (done[run]["end"] == "steps" and done[run]["steps"] < steps)]


def perform(runs: dict[Run, Settings], steps: int, path: Path) -> None:
    """Trains what is missing and adds a row of each to the file."""
    if steps < 1:
        raise ArgumentError(f"steps must be at least 1, not {steps}.")
    for run, settings in runs.items():  # a wrong name is told before the first hour, not after
        run.network(TASKS[run.task](run.time), settings.units)
    todo, console = missing(runs, steps, path), Console(stderr=True)
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

            row = train(run, runs[run], steps, watch)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            score, seconds = row["curve"][-1][1], row["seconds"]
            console.print(f"{name}: {row['end']} at {row['steps']:,}, {score:.4f}, {seconds} s", highlight=False)


def asked(options: argparse.Namespace) -> dict[Run, Settings]:
    """The runs that the options ask for, and how each is made: by its recipe, but for what they say."""
    given = {name: value for name in asdict(RECIPES["adding"]) if (value := getattr(options, name)) is not None}
    runs = {}
    for seed, task in product(options.seed, options.task):
        for length, name in product(options.time or LENGTHS.get(task, [LEAST]), options.cell):
            cell, _, init = name.partition("+")
            run = Run(task, length, cell, init, seed)
            runs[run] = replace(run.recipe(), **given)
    return runs


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", default=list(TASKS))
    parser.add_argument("--time", type=int, nargs="+", help="adding's length, copying's delay; default: the usual ones")
    parser.add_argument(
        "--cell", nargs="+", default=CONTENDERS, metavar="NAME[+INIT]", help="INIT: " + ", ".join(INITS)
    )
    parser.add_argument("--seed", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, default=6000)
    for name, value in asdict(RECIPES["adding"]).items():
        usual = dict.fromkeys(str(getattr(recipe, name)) for recipe in RECIPES.values())
        parser.add_argument(f"--{name}", type=type(value), help=f"default: {' and '.join(usual)}")
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
        perform(asked(options), options.steps, options.out)
    except (RitornelloError, OSError) as error:
        what = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
        print(f"long_memory: {what}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
