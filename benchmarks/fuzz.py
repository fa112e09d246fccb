"""Does the compiled machine do what the reference executor does, whatever the cell?

    python benchmarks/fuzz.py [--cells 10000] [--seed 0] [--sets baseline avx2] [--jobs N]

Draws cells and batches at random (tests/random_cells.py), one for each seed from --seed on, and compares values and
gradients with the reference's in float64, under every instruction set of this processor, each in a process of its own.
Every eighth problem is run by two threads as well, which may not change a bit. Prints what was hit how often; at the
first disagreement the cell, and how to run it alone, and exits with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[1] / "tests"))

import torch
from random_cells import F64, IllConditioned, RandomCell, answer, check, problem_of
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ritornello import _core
from ritornello.program import Wants, derive, trace, unroll
from ritornello.program.code import AFTER, BACK, BEFORE, LOOP, Product
from ritornello.program.linear import linearise
from ritornello.program.lower import _Lowering
from ritornello.program.passes import SUMS, fold, fuse, merge, split
from ritornello.program.program import INPUT, PARAMETER

BAR = 40


class Disagreement(Exception):
    """A worker found a problem that it answers otherwise than the reference; carries what it told."""


def run(seed: int) -> str:
    """Checks a problem: "equal", or "ill" for those that no one could tell the answer of."""
    problem, dtype = problem_of(seed)
    torch.set_num_threads(1)
    try:
        check(problem, dtype)
    except IllConditioned:
        return "ill"
    if seed % 8 == 0 and not problem.recipe.torch_multiplies:
        one = answer(problem, "cpu", dtype)
        torch.set_num_threads(2)
        two = answer(problem, "cpu", dtype)
        for part, its in zip(one, two, strict=True):
            for name in part:
                assert torch.equal(part[name], its[name]), f"{name} has other bits with two threads"
    return "equal"


def hits(seed: int) -> dict[str, Counter]:
    """What a problem touches: ops, what the passes did, instructions, and what it is run on."""
    problem, dtype = problem_of(seed)
    cell = RandomCell(problem.recipe)
    program = unroll(trace(cell, cell.input_size, cell.state_sizes, torch.zeros((), dtype=F64)), 1)
    effects: Counter = Counter()
    stages = [program]
    for step in (split, fold, linearise, merge, fuse):
        stages.append(step(stages[-1]))
    sums = [sum(node.op in SUMS for node in each.nodes) for each in stages]
    products = [sum(node.op == "affine" for node in each.nodes) for each in stages]
    final = stages[-1]
    effects["hoisted"] = sum(node.rate == INPUT and bool(node.args) for node in final.nodes)
    effects["split"] = sums[1] - sums[0]
    effects["folded"] = max(0, sums[1] - sums[2])
    effects["linearised"] = stages[2] != stages[3]
    effects["merged"] = products[3] - products[4]
    effects["fused"] = sum(node.op == "mul_add" for node in final.nodes)
    fields = len(final.fields)
    lowering = _Lowering(derive(final), Wants(True, -1 not in problem.frozen, (True,) * fields))
    code = lowering.code()
    effects["saved"] = len(lowering.saved)
    once_more = {
        value
        for (value, routine), view in lowering.made.items()
        if routine in (BACK, AFTER) and lowering.stages[value] in (BEFORE, LOOP) and view.slot.routine == routine
    }
    effects["recomputed"] = len(once_more)
    steps = [step for routine in code.routines for step in routine]
    kinds = ["product" if isinstance(step, Product) else step.op for step in steps]
    size = f"{problem.time} × {problem.batch}"
    return {
        "op": Counter(node.op for node in final.nodes if node.rate > PARAMETER or node.op == "call"),
        "pass": +effects,
        "cells with": Counter(name for name, count in effects.items() if count),
        "instruction": Counter(kinds),
        "dtype": Counter([str(dtype).removeprefix("torch.")]),
        "batch": Counter([problem.kind]),
        "steps × sequences": Counter([size]),
        "state": Counter([problem.state or "zero"]),
        "loss reads": Counter([problem.read]),
    }


def work() -> None:
    """A worker: seeds come in, one a line; answers go out."""
    for line in sys.stdin:
        seed = int(line)
        try:
            told = {"found": run(seed), "hits": hits(seed) if os.environ.get("FUZZ_HITS") else {}}
        except Exception as error:
            told = {"wrong": f"{type(error).__name__}: {error}"}
        print(json.dumps(told), flush=True)


class Worker:
    """A process that runs under one instruction set."""

    def __init__(self, name: str, first: bool) -> None:
        self.name = name
        environment = {**os.environ, "RITORNELLO_ISA": name, "OMP_NUM_THREADS": "1", "FUZZ_HITS": "1" if first else ""}
        program = [sys.executable, __file__, "--worker"]
        self.process = subprocess.Popen(
            program, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, seed: int) -> dict:
        print(seed, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise Disagreement(self.name, seed, f"the process ended with {self.process.wait()}")
        told = json.loads(line)
        if "wrong" in told:
            raise Disagreement(self.name, seed, told["wrong"])
        return told


def drive(worker: Worker, seeds: range, turn: threading.Semaphore, tell, stop: threading.Event) -> None:
    for seed in seeds:
        if stop.is_set():
            return
        with turn:
            try:
                tell(worker, worker.ask(seed), None)
            except Disagreement as error:
                stop.set()
                tell(worker, {}, error)


def show(console: Console, title: str, counts: Counter) -> None:
    table = Table(title=title, title_justify="left", box=None, show_header=False)
    most = max(1, *counts.values())
    for name, count in counts.most_common():
        table.add_row(name, f"{count:,}", "█" * max(1, round(BAR * count / most)))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sets", nargs="+", default=_core.instruction_sets(), choices=_core.instruction_sets())
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work()
        return
    console = Console()
    seeds = range(options.seed, options.seed + options.cells)
    found: dict[str, Counter] = {}
    answers: Counter = Counter()
    wrong: list[Disagreement] = []
    lock, stop, turn = threading.Lock(), threading.Event(), threading.Semaphore(options.jobs)
    begin = time.perf_counter()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        workers = [Worker(name, first=number == 0) for number, name in enumerate(options.sets)]
        tasks = {worker.name: progress.add_task(worker.name, total=len(seeds)) for worker in workers}

        def tell(worker: Worker, told: dict, error: Disagreement | None) -> None:
            with lock:
                if error is not None:
                    wrong.append(error)
                    return
                answers[worker.name, told["found"]] += 1
                for kind, counts in told["hits"].items():
                    found.setdefault(kind, Counter()).update(counts)
                progress.advance(tasks[worker.name])

        threads = [threading.Thread(target=drive, args=(worker, seeds, turn, tell, stop)) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for worker in workers:
            worker.process.stdin.close()
            worker.process.wait()
    for kind, counts in found.items():
        show(console, kind, counts)
    show(console, "instruction set", Counter({name: answers[name, "equal"] for name in options.sets}))
    ill = sum(count for (_, what), count in answers.items() if what == "ill")
    total, seconds = sum(answers.values()), time.perf_counter() - begin
    console.print(
        f"{total:,} runs in {seconds:.0f} s, {seconds / max(1, total) * 1000:.0f} ms each; "
        f"{ill} of them too ill-conditioned to tell"
    )
    for error in wrong[:1]:
        name, seed, message = error.args
        problem, dtype = problem_of(seed)
        console.print(
            f"\nDisagreement under {name} at seed {seed} ({dtype}): {message}", style="bold red", markup=False
        )
        console.print(f"{problem}", markup=False, highlight=False)
        console.print(
            f"\npython benchmarks/fuzz.py --cells 1 --seed {seed} --sets {name}", markup=False, highlight=False
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
