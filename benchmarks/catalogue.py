"""Every cell of the catalogue as a language model: equal parameters, ten minutes of one core each.

    python benchmarks/catalogue.py --text FILE --out DIR [--cell lstm ...] [--rates 0.003] [--seeds 1] [--workers 2]
    python benchmarks/catalogue.py --out DIR --table

A cell's units are chosen so that the whole model has `--parameters` weights. How many updates ten minutes hold is
measured first, one cell after the other on a quiet machine; then all train for as many, so that a machine that is busy
meanwhile changes nothing. Each rate is a whole run of the first seed, for short trials favour high rates; the best of
them stands, and other seeds use it. Rows go to DIR/results.jsonl as they are found; what is there is not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from ritornello.cells import CELLS, catalogue
from ritornello.errors import ArgumentError, RitornelloError, RunError
from ritornello.models import LanguageModel
from ritornello.tasks import language_model as task
from ritornello.training.config import TrainingConfig
from ritornello.training.optimise import clip, make_optimiser

VOCABULARY, EMBEDDING, LAYERS, DROPOUT = 84, 64, 2, 0.1
BATCH, WINDOW = 32, 64
COMMON = {"split": "80/10/10", "embedding": EMBEDDING, "layers": LAYERS, "dropout": DROPOUT, "batch": BATCH,
          "window": WINDOW, "threads": 1, "precision": "auto", "tied": False}  # fmt: skip
PARTS = ("valid", "test")


def model_of(cell: str, hidden: int) -> LanguageModel:
    """The model that is trained, on an alphabet about as large."""
    kind: Any = catalogue.find(cell)
    return LanguageModel(
        VOCABULARY, kind, embedding=EMBEDDING, hidden=hidden, layers=LAYERS, dropout=DROPOUT, tied=False
    )


def weights(cell: str, hidden: int) -> int:
    """How many parameters the model has."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in model_of(cell, hidden).parameters())


def units(cell: str, parameters: int) -> int:
    """The most units, a multiple of 8, with which the model has no more parameters."""
    hidden = 8
    while weights(cell, hidden + 8) <= parameters:
        hidden += 8
    return hidden


def updates(cell: str, hidden: int, minutes: float, quiet: float) -> int:
    """How many updates fit into the time on one thread, by the median of those done in `quiet` seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = TrainingConfig(steps=1, threads=1, precision="auto")
    model = model_of(cell, hidden)
    optimiser = make_optimiser(model, config)
    tokens = torch.randint(VOCABULARY, (WINDOW + 1, BATCH))
    spent, begin = [], time.perf_counter()
    while len(spent) < 5 or time.perf_counter() - begin < quiet:
        start = time.perf_counter()
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
            logits = model(tokens[:-1])[0]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[1:].flatten())
        loss.backward()
        clip(optimiser, config)
        optimiser.step()
        spent.append(time.perf_counter() - start)
    return int(60 * minutes / statistics.median(spent[2:]))


def trained(out: str, text: str, cell: str, hidden: int, steps: int, rate: float, seed: int) -> dict:
    """Trains one model, or goes on with it, and scores it."""
    begin = time.monotonic()
    try:
        if (Path(out) / "config.json").exists():
            run = task.resume(out, cell=cell)
        else:
            options = {**COMMON, "cell": cell, "hidden": hidden, "steps": steps, "lr": rate, "seed": seed}
            run = task.train(out, train=[text], evaluations=5, **options)
        scores: dict[str, Any] = {part: run.evaluate(part)["loss"] for part in PARTS}
        scores["precision"] = run.run.config["training"]["precision"]
    except RunError as error:  # the loss is no number any more, which ends this run and no other
        scores = {**dict.fromkeys(PARTS, math.inf), "error": str(error)}
    return {**scores, "seconds": time.monotonic() - begin}


class Results:
    """The rows of a file, one JSON object a line."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.path = out, out / "results.jsonl"
        self.rows = [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def find(self, **wanted: Any) -> dict[str, Any] | None:
        """The row that has these values."""
        return next((row for row in self.rows if wanted.items() <= row.items()), None)

    def add(self, **row: Any) -> None:
        """One more."""
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def measure(results: Results, cells: list[str], parameters: int, minutes: float, quiet: float, bar: Progress) -> None:
    """How many units and updates each cell gets, one cell after the other."""
    for plan in (row for row in results.rows if row["kind"] == "plan" and row["cell"] in cells):
        if (plan["hidden"], plan["minutes"]) != (units(plan["cell"], parameters), minutes):
            raise ArgumentError(
                f"{results.path} holds {plan['cell']} with {plan['hidden']} units and {plan['minutes']:g} minutes; "
                "for other --parameters or --minutes name another folder by --out."
            )
    left = [cell for cell in cells if not results.find(kind="plan", cell=cell)]
    for cell in bar.track(left, description="how fast is each"):
        hidden = units(cell, parameters)
        steps = updates(cell, hidden, minutes, quiet)
        results.add(kind="plan", cell=cell, hidden=hidden, weights=weights(cell, hidden), steps=steps, minutes=minutes)


def train_all(
    results: Results, text: str, cells: list[str], rates: list[float], seeds: list[int], workers: int, bar: Progress
) -> None:
    """All runs that are not there yet, one seed after the other, `workers` at a time."""
    context = multiprocessing.get_context("spawn")
    for seed in seeds:
        jobs = list(runs(results, text, cells, rates, seed))
        waiting = bar.add_task(f"training, seed {seed}", total=len(jobs))
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            known = {pool.submit(trained, *arguments): row for arguments, row in jobs}
            for done in as_completed(known):
                results.add(**known[done], **done.result())
                bar.advance(waiting)


def runs(results: Results, text: str, cells: list[str], rates: list[float], seed: int) -> Iterator[tuple[tuple, dict]]:
    """Arguments and row of each run to do: the first seed's at all rates, another's at the best of these."""
    for cell in cells:
        plan, made = results.find(kind="plan", cell=cell), standing(results, cell)
        for rate in [made[0]["rate"]] if made and made[0]["seed"] != seed else rates:
            row = {"kind": "run", "cell": cell, "seed": seed, "rate": rate}
            if plan and not results.find(**row):
                out = str(results.out / "runs" / f"{cell}-{rate}-{seed}")
                yield (out, text, cell, plan["hidden"], plan["steps"], rate, seed), row


def standing(results: Results, cell: str) -> list[dict[str, Any]]:
    """The runs that count, at the rate at which the first seed did best; its run first."""
    made = [row for row in results.rows if row["kind"] == "run" and row["cell"] == cell]
    if not made:
        return []
    first = made[0]["seed"]
    best = min((row for row in made if row["seed"] == first), key=lambda row: row["valid"])
    return [best] + [row for row in made if row["seed"] != first and row["rate"] == best["rate"]]


def table(results: Results) -> str:
    """Markdown, the best cell first."""
    found = []
    for cell in dict.fromkeys(row["cell"] for row in results.rows if row["kind"] == "run"):
        plan = results.find(kind="plan", cell=cell)
        scores = standing(results, cell)
        found.append((statistics.mean(row["test"] for row in scores), cell, plan, scores))
    lines = [
        "| cell | units | weights | characters a second | rate | valid | test | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for _, cell, plan, scores in sorted(found, key=lambda each: each[0]):
        assert plan is not None
        speed = plan["steps"] * BATCH * WINDOW / (60 * plan["minutes"])
        told = [_mean([row[part] for row in scores]) for part in PARTS]
        about = "≈ " if plan.get("estimated") else ""  # from another processor
        cells = [f"`{cell}`", str(plan["hidden"]), f"{plan['weights']:,}", f"{about}{speed:,.0f}"]
        cells.append(f"{scores[0]['rate']:g}")
        lines.append("| " + " | ".join([*cells, *told, str(len(scores))]) + " |")
    return "\n".join(lines)


def _mean(values: list[float]) -> str:
    if math.inf in values:
        return "diverged"
    return f"{statistics.mean(values):.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def main(words: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", help="the text to learn")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--cell", nargs="*", default=[], help="cells by name; none: the whole catalogue")
    parser.add_argument("--rates", nargs="*", type=float, default=[0.003], help="learning rates of the first seed")
    parser.add_argument("--seeds", nargs="*", type=int, default=[1])
    parser.add_argument("--parameters", type=int, default=1_300_000)
    parser.add_argument("--minutes", type=float, default=10.0, help="of one core, for each run")
    parser.add_argument("--quiet", type=float, default=8.0, help="seconds in which each cell's speed is measured")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    parser.add_argument("--table", action="store_true", help="print what has been found, and stop")
    asked = parser.parse_args(words)
    results = Results(asked.out)
    try:
        if not asked.table:
            if not asked.text:
                raise ArgumentError("--text FILE is missing: what is to be learnt?")
            cells = asked.cell or list(CELLS)
            for cell in cells:
                catalogue.find(cell)
            with Progress(disable=not sys.stderr.isatty()) as bar:
                measure(results, cells, asked.parameters, asked.minutes, asked.quiet, bar)
                train_all(results, asked.text, cells, asked.rates, asked.seeds, asked.workers, bar)
    except RitornelloError as error:
        sys.exit(f"catalogue: {error}")
    print(table(results))


if __name__ == "__main__":
    main()
