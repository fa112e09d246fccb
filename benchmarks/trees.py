"""The constituency Tree-LSTM over trees: beside plain PyTorch, beside the ceiling, an epoch, deep and many trees.

    python benchmarks/trees.py --trees FILE [--seconds 20] [--threads 2]

Everything is timed in turns in one run, after values and gradients were compared. 300 features a word, x at leaves.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ritornello.bench.ceiling import find_ceiling
from ritornello.bench.clock import interleave
from ritornello.cells import TreeLSTM
from ritornello.data.brackets import read_trees, write_trees
from ritornello.data.trees import Trees
from ritornello.engine import Unfold
from ritornello.errors import RitornelloError
from ritornello.processor import has_bfloat16
from ritornello.structures import Forest
from ritornello.tasks import tree as task

FEATURES, TREES, ALONE = 300, 256, 12  # ALONE: trees for the way that takes node by node


class Levels:
    """What a person works out beforehand to compute a forest level by level: nodes and their two children."""

    def __init__(self, forest: Forest) -> None:
        children = np.zeros((forest.nodes, 2), np.int64)
        child = np.flatnonzero(forest.parents >= 0)
        children[forest.above[child], forest.slots[child]] = child
        self.leaves = torch.from_numpy(forest.leaves)
        heights = range(1, int(forest.heights.max()) + 1)
        nodes = [np.flatnonzero(forest.heights == height) for height in heights]
        self.inner = [(torch.from_numpy(each), *map(torch.from_numpy, children[each].T.copy())) for each in nodes]


def by_level(cell: TreeLSTM, levels: Levels, nodes: int, x: Tensor) -> Tensor:
    """Plain PyTorch: all nodes of one height at once, their states written into one tensor."""
    size = cell.hidden_size
    i, g, o, _ = cell.W(x).chunk(4, 1)
    new = torch.sigmoid(i) * torch.tanh(g)
    h, c = new.new_zeros(nodes, size), new.new_zeros(nodes, size)
    c = c.index_copy(0, levels.leaves, new)
    h = h.index_copy(0, levels.leaves, torch.sigmoid(o) * torch.tanh(new))
    bi, bg, bo, bf = cell.W.bias.chunk(4)
    for node, left, right in levels.inner:
        i, g, o, one, other = cell.U(torch.cat([h[left], h[right]], 1)).chunk(5, 1)
        new = torch.sigmoid(i + bi) * torch.tanh(g + bg)
        new = new + torch.sigmoid(one + bf) * c[left] + torch.sigmoid(other + bf) * c[right]
        c = c.index_copy(0, node, new)
        h = h.index_copy(0, node, torch.sigmoid(o + bo) * torch.tanh(new))
    return h


def by_node(cell: TreeLSTM, forest: Forest, x: Tensor) -> list[Tensor]:
    """Plain PyTorch: every node by itself."""
    found: dict[int, Any] = {}
    blank, none = cell.zero_state(1, x), x.new_zeros(1, FEATURES)
    rows = dict(zip(forest.leaves.tolist(), x.split(1), strict=True))
    children: dict[int, list[int]] = {}
    for node, above in enumerate(forest.above.tolist()):
        children.setdefault(above, []).append(node)
    for node in np.argsort(forest.heights, kind="stable").tolist():
        below = [found[child] for child in children.get(node, [])] or [blank, blank]
        found[node] = cell(rows.get(node, none), *below)
    return [found[node].h for node in range(forest.nodes)]


def step(forward: Callable[[Tensor], Any], cell: TreeLSTM, x: Tensor) -> Callable[[], Any]:
    """Forward and backward."""

    def call() -> list[Tensor]:
        h = forward(x)
        h = torch.cat(h) if isinstance(h, list) else h
        return list(torch.autograd.grad(h.sum(), [x, *cell.parameters()], materialize_grads=True))

    return call


def in_half(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same with products in bfloat16."""

    def call(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return forward(x)

    return call


def flops(forest: Forest, size: int) -> float:
    """Of the products of forward and backward, by the equations; leaves without forget gates."""
    leaves = len(forest.leaves)
    return 3 * (leaves * 2 * FEATURES * 3 * size + (forest.nodes - leaves) * 2 * 2 * size * 5 * size)


def compare(forest: Forest, size: int, seconds: float, table: Table) -> None:
    """Milliseconds of all ways, the same trees; node by node for some of them, counted up."""
    torch.manual_seed(1)
    cell = TreeLSTM(FEATURES, size)
    x = torch.randn(len(forest.leaves), FEATURES, requires_grad=True)
    levels, some = Levels(forest), forest[np.arange(min(ALONE, len(forest)))]
    few = x[: len(some.leaves)].detach().requires_grad_()
    ways = {executor: Unfold(cell, executor=executor) for executor in ("cpu", "reference")}

    def ours(executor: str) -> Callable[[Tensor], Tensor]:
        return lambda x: ways[executor].over(forest, x, inputs="leaves")[0]

    def plain(x: Tensor) -> Tensor:
        return by_level(cell, levels, forest.nodes, x)

    calls = {
        "compiled": step(ours("cpu"), cell, x),
        "reference executor": step(ours("reference"), cell, x),
        "plain, by level": step(plain, cell, x),
        "plain, node by node": step(lambda x: by_node(cell, some, x), cell, few),
    }
    ceilings = {"": find_ceiling(torch.float32, seconds / 6)}
    if has_bfloat16():
        calls["compiled, bfloat16"] = step(in_half(ours("cpu")), cell, x)
        calls["plain, by level, bfloat16"] = step(in_half(plain), cell, x)
        ceilings["16"] = find_ceiling(torch.bfloat16, seconds / 6)
    alike(
        calls["plain, node by node"](), step(lambda x: by_level(cell, Levels(some), some.nodes, x), cell, few)(), 1e-3
    )
    expected = calls["plain, by level"]()
    for name in calls.keys() - {"plain, node by node"}:
        alike(calls[name](), expected, 5e-2 if "bfloat16" in name else 1e-3)
    times = interleave(calls | {f"ceiling{name}": each.call for name, each in ceilings.items()}, seconds)
    scale = {name: forest.nodes / some.nodes if name == "plain, node by node" else 1.0 for name in calls}
    best = times["compiled"].best
    for name in calls:
        spent = times[name].best * scale[name]
        which = "16" if "bfloat16" in name else ""
        ceiling = ceilings[which].flops / times[f"ceiling{which}"].best
        share = flops(forest, size) / spent / ceiling
        table.add_row(f"{size}", name, f"{spent * 1e3:.1f}", f"{spent / best:.1f}", f"{share:.2f}")


def alike(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Gradients of the sum of all states, of x and of all parameters, against the largest of each."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


def epoch(trees: Trees, batch: int, epochs: int, console: Console) -> None:
    """Seconds of an epoch as `rit train tree` trains it: dropout 0.5, adagrad, the loss at every node."""
    with tempfile.TemporaryDirectory() as folder:
        train, valid = Path(folder, "train.txt"), Path(folder, "valid.txt")
        write_trees(train, trees)
        write_trees(valid, trees[: min(len(trees), 100)])
        budget = {"epochs": epochs, "evaluations": epochs, "batch": batch, "threads": torch.get_num_threads()}
        run = task.train(Path(folder, "run"), train=train, valid=valid, **budget)
        best = min(row["epoch_seconds"] for row in run.run.metrics())
    precision = run.run.config["training"]["precision"]
    console.print(f"an epoch of {len(trees):,} trees, {batch} a batch, {precision}: {best:.2f} s (best of {epochs})")


def deep_and_many(least: int, console: Console) -> None:
    """Combs and trees of one leaf, twice as many each time: time and memory grow alike."""
    table = Table("trees", "nodes", "ms", "µs a node", "MB at most so far", box=None)
    cell = TreeLSTM(FEATURES, 150)
    for name in ("a comb", "of one leaf"):
        for size in (least, 2 * least, 4 * least):
            spine = np.arange(size)
            comb = np.concatenate([spine[1:], [-1], spine])
            forest = Forest.from_parents([comb] if name == "a comb" else [[-1]] * size)
            x = torch.randn(len(forest.leaves), FEATURES, requires_grad=True)
            unfold = Unfold(cell, executor="cpu")
            call = step(lambda x, f=forest, u=unfold: u.over(f, x, inputs="leaves")[0], cell, x)  # type: ignore[misc]
            call()
            spent = min(_timed(call) for _ in range(3))
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            row = (f"{spent * 1e3:.0f}", f"{spent / forest.nodes * 1e6:.2f}", f"{memory:.0f}")
            table.add_row(f"{name}", f"{forest.nodes:,}", *row)
    console.print(table)


def _timed(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trees", required=True, help="a file of labelled binary trees")
    parser.add_argument("--seconds", type=float, default=20.0, help="in which the ways are timed, for each size")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--units", type=int, nargs="+", default=[150, 300])
    parser.add_argument("--batch", type=int, nargs="*", default=[256, 25], help="trees a batch in the epochs")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--deep", type=int, default=5_000, help="the least deep comb, and trees of one leaf")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    console, trees = Console(), read_trees(asked.trees)
    table = Table("units", "way", "ms", "x compiled", "of the ceiling", box=None)
    for size in asked.units:
        compare(trees.forest[np.arange(min(TREES, len(trees)))], size, asked.seconds, table)
    console.print(table)
    for batch in asked.batch:
        epoch(trees, batch, asked.epochs, console)
    deep_and_many(asked.deep, console)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except RitornelloError as error:
        raise SystemExit(f"trees: {error}") from None
