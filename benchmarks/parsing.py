"""Parsing of bracketed trees by a recursive network, beside trees that know nothing of their words.

    python benchmarks/parsing.py --train FILE --valid FILE --test FILE [--how chart] [--seeds 1 2 3] --out FILE

Labels are left aside. A row a search and seed goes to the file of rows (JSON lines) and to the table that is printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from ritornello.cells import catalogue
from ritornello.data.brackets import read_trees
from ritornello.data.trees import Trees
from ritornello.data.vocabulary import Vocabulary
from ritornello.errors import RitornelloError
from ritornello.models.merging import Instances
from ritornello.models.parser import SEARCHES, SentenceParser, bracket_f1, branching, groups_of
from ritornello.structures import Forest, preorder

BATCH, PENALTY = 64, 0.5


class Sentences(NamedTuple):
    """Sentences and their trees.

    Attributes:
        trees: right ones.
        words: (leaves,) ids.
        sizes: (sentences,) words of each.
        groups: of `Instances`.
    """

    trees: Forest
    words: np.ndarray
    sizes: np.ndarray
    groups: list[np.ndarray]

    @classmethod
    def of(cls, trees: Trees, vocabulary: Vocabulary) -> Sentences:
        forest = trees.forest
        sizes = np.bincount(forest.tree_of[forest.leaves], minlength=len(forest))
        return cls(forest, trees.encoded(vocabulary).words[forest.leaves], sizes, groups_of(forest))

    def some(self, which: np.ndarray) -> tuple[Forest, Tensor, np.ndarray, Instances]:
        """Their trees, words, sizes and what is to be merged."""
        starts = self.sizes.cumsum() - self.sizes
        places = np.concatenate([np.arange(starts[k], starts[k] + self.sizes[k]) for k in which])
        instances = Instances.lines(self.sizes[which], [self.groups[k] for k in which])
        return self.trees[which], torch.from_numpy(self.words[places]), self.sizes[which], instances


def short(path: str, most: int) -> Trees:
    """The trees of a file with two to `most` words, in brackets of two."""
    trees = read_trees(path).collapsed().binarised()
    words = np.bincount(trees.forest.tree_of[trees.forest.leaves], minlength=len(trees))
    return trees[np.flatnonzero((words >= 2) & (words <= most))]


def f1(model: SentenceParser, data: Sentences, how: str, width: int) -> float:
    """Of the trees that the model finds."""
    model.eval()
    found = []
    with torch.no_grad():
        for start in range(0, len(data.sizes), 256):
            _, words, sizes, instances = data.some(np.arange(start, min(start + 256, len(data.sizes))))
            trees = model.search(instances._replace(groups=None), model.features(words, sizes), how, width).trees
            found.append(Forest.from_depths(preorder(trees)[1]))
    model.train()
    return bracket_f1(Forest.concatenate(found), data.trees)


def train(data: dict[str, Sentences], vocabulary: int, asked: argparse.Namespace, seed: int, bar: Progress) -> dict:
    """Trains one model; the weights with the best validation F1 are scored on the test part."""
    torch.manual_seed(seed)
    cell: Any = catalogue.find(asked.cell)
    model = SentenceParser(vocabulary, cell, embedding=64, context=64, hidden=96, dropout=0.3)
    optimiser = torch.optim.AdamW(model.parameters(), lr=asked.lr)
    random, begin = np.random.default_rng(seed), time.monotonic()
    best: dict[str, Any] = {"valid": -1.0}
    task = bar.add_task(f"{asked.how}, seed {seed}", total=asked.epochs)
    for epoch in range(asked.epochs):
        order = random.permutation(len(data["train"].sizes))
        for start in range(0, len(order), BATCH):
            right, words, sizes, instances = data["train"].some(order[start : start + BATCH])
            loss = model.margin(instances, model.features(words, sizes), PENALTY, right, asked.how, asked.width)
            optimiser.zero_grad()
            loss.mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimiser.step()
        valid = f1(model, data["valid"], asked.how, asked.width)
        if valid > best["valid"]:
            best = {"valid": valid, "test": f1(model, data["test"], asked.how, asked.width), "epoch": epoch + 1}
        bar.update(task, advance=1, description=f"{asked.how}, seed {seed}: F1 {valid:.3f}")
    return {"how": asked.how, "width": asked.width, "seed": seed, "seconds": time.monotonic() - begin, **best}


def table(rows: list[dict], baselines: dict[str, float]) -> str:
    """Markdown: mean and deviation over seeds."""
    lines = ["| trees | F1, valid | F1, test | seeds |", "|---|---|---|---|"]
    for how in dict.fromkeys((row["how"], row["width"]) for row in rows):
        own = [row for row in rows if (row["how"], row["width"]) == how]
        told = []
        for part in ("valid", "test"):
            values = [100 * row[part] for row in own]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            told.append(f"{statistics.mean(values):.1f}{spread}")
        lines.append(f"| {how[0]}, width {how[1]} | {told[0]} | {told[1]} | {len(own)} |")
    lines += [f"| {name} | | {100 * value:.1f} | |" for name, value in baselines.items()]
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for part in ("train", "valid", "test"):
        parser.add_argument(f"--{part}", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--how", choices=SEARCHES, default="chart")
    parser.add_argument("--width", type=int, default=1)
    parser.add_argument("--cell", default="tree-lstm")
    parser.add_argument("--most", type=int, default=20, help="words of a sentence")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=0.002)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    trees = {part: short(getattr(asked, part), asked.most) for part in ("train", "valid", "test")}
    vocabulary = Vocabulary.learn(trees["train"].word_counts(), least=2)
    data = {part: Sentences.of(each, vocabulary) for part, each in trees.items()}
    out = Path(asked.out)
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    with Progress() as bar:
        for seed in asked.seeds:
            key = {"how": asked.how, "width": asked.width, "seed": seed}
            if any(key.items() <= row.items() for row in rows):
                continue
            rows.append(train(data, len(vocabulary), asked, seed, bar))
            with out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    test = data["test"]
    baselines = {f"{how} branching": bracket_f1(branching(test.sizes, how), test.trees) for how in ("right", "left")}
    baselines["balanced"] = bracket_f1(branching(test.sizes, "balanced"), test.trees)
    print(table(rows, baselines))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except RitornelloError as error:
        raise SystemExit(f"parsing: {error}") from None
