"""How well does a recursive network put the regions of pictures together?

    python benchmarks/scenes.py [--train 5000] [--test 500] [--epochs 5] [--seed 1 2 3] [--plot FILE.png]

Pictures of nested regions are drawn (`ritornello.data.scenes`); a `Parser` learns by max margin to merge neighbours so
that parts come before objects and objects before the whole (Socher et al. 2011). Printed is the F1 of regions on
pictures that training does not see, beside a network that was not trained and beside what needs none: merging the two
neighbours whose mean colours are closest. --plot draws pictures with the first seed's trees: the later two sides are
merged, the thicker the line between them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import nn

import ritornello as rit
from ritornello.data.scenes import FEATURES, Scene, scenes
from ritornello.errors import RitornelloError
from ritornello.models.merging import Instances
from ritornello.models.parser import Parser, leaves_below, region_f1
from ritornello.pictures import check_place, save
from ritornello.pictures.figure import new_figure
from ritornello.structures import Forest

UNITS, RATE, BATCH, WIDTH, PENALTY = 48, 0.01, 20, 4, 0.3
TEST_SEED = 1000  # of the test's pictures; a seed of training draws its own


def read(drawn: list[Scene]) -> tuple[Instances, torch.Tensor]:
    """The pictures as what a parser merges, and their regions' features."""
    x = torch.from_numpy(np.concatenate([scene.features for scene in drawn]))
    return Instances.graphs([scene.neighbours for scene in drawn], [scene.groups for scene in drawn]), x


class RegionParser(Parser):
    """Regions' features through one layer, then the constituency Tree-LSTM, whose two slots can compare.

    A cell that sums reads only the sum, in which two equal colours look like two as far on both sides of theirs.
    """

    def __init__(self) -> None:
        super().__init__(rit.cells.TreeLSTM, UNITS, UNITS)
        self.encoder = nn.Sequential(nn.Linear(FEATURES, UNITS), nn.Tanh())

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """What the cell reads; the raw features lie between 0 and 1, and shades apart by hundredths."""
        return self.encoder(4 * (x - 0.5))

    def found(self, drawn: list[Scene]) -> Forest:
        """The trees of the pictures, by a beam."""
        instances, x = read(drawn)
        return self.search(instances._replace(groups=None), self.features(x), "beam", WIDTH).trees


def trained(drawn: list[Scene], epochs: int, seed: int) -> RegionParser:
    """A parser that has seen the pictures so often, in a new order each time, while the rate falls to zero."""
    torch.manual_seed(seed)
    parser, order, parts = RegionParser(), np.random.default_rng(seed), -(-len(drawn) // BATCH)
    optimiser = torch.optim.Adam(parser.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * parts)
    batches = [part for _ in range(epochs) for part in np.array_split(order.permutation(len(drawn)), parts)]
    for batch in track(batches, f"training, seed {seed}", disable=not sys.stdout.isatty(), transient=True):
        instances, x = read([drawn[number] for number in batch])
        loss = parser.margin(instances, parser.features(x), PENALTY, how="beam", width=WIDTH).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parser.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return parser


def by_colour(scene: Scene) -> list[int]:
    """The parents of the tree that merges, again and again, the two neighbours whose mean colours are closest."""
    regions = len(scene.features)
    colours, sizes = list(scene.features[:, :3].astype(float)), [1] * regions
    touching, parents = [set(np.flatnonzero(row).tolist()) for row in scene.neighbours], [-1] * regions
    alive = set(range(regions))
    while len(alive) > 1:
        pairs = ((one, other) for one in sorted(alive) for other in sorted(touching[one]) if one < other)
        one, other = min(pairs, key=lambda pair: float(((colours[pair[0]] - colours[pair[1]]) ** 2).sum()))
        new, size = len(parents), sizes[one] + sizes[other]
        colours.append((sizes[one] * colours[one] + sizes[other] * colours[other]) / size)
        sizes.append(size)
        parents[one] = parents[other] = new
        parents.append(-1)
        around = (touching[one] | touching[other]) - {one, other}
        touching.append(around)
        for each in around:
            touching[each] = (touching[each] - {one, other}) | {new}
        alive = (alive - {one, other}) | {new}
    return parents


def draw(drawn: list[Scene], trees: Forest, path: Path) -> None:
    """The pictures side by side, lines between regions as thick as the merge that removes them is high."""
    figure = new_figure(2.2 * len(drawn), 2.3)
    below = np.split(leaves_below(trees, max(len(scene.features) for scene in drawn)), trees.sizes.cumsum())[:-1]
    for which, (scene, members) in enumerate(zip(drawn, below, strict=True)):
        axes = figure.add_subplot(1, len(drawn), which + 1)
        axes.set_axis_off()
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        for (left, bottom, right, top), colour in zip(scene.boxes, scene.features[:, :3].clip(0, 1), strict=True):
            axes.fill([left, right, right, left], [bottom, bottom, top, top], color=colour, linewidth=0)
        heights = trees.heights[trees.nodes_of(which)]
        for one, other in zip(*np.nonzero(np.triu(scene.neighbours)), strict=True):
            merged = heights[members[:, one] & members[:, other]].min()
            axes.plot(
                *border(scene.boxes[one], scene.boxes[other]),
                color="black",
                linewidth=0.7 * merged,
                solid_capstyle="butt",
            )
    save(figure, path)


def border(one: np.ndarray, other: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where two boxes touch: the horizontal and the vertical places of the line's two ends."""
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    return (low[0], high[0]), (low[1], high[1])


def main(words: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=5000, help="pictures to learn from")
    parser.add_argument("--test", type=int, default=500, help="pictures to be judged by")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw six pictures with what was found")
    asked = parser.parse_args(words)
    if min(asked.train, asked.test, asked.epochs, asked.threads) < 1:
        parser.error("--train, --test, --epochs and --threads must be at least 1.")
    torch.set_num_threads(asked.threads)
    try:
        if asked.plot:
            check_place(asked.plot)
        test = scenes(asked.test, TEST_SEED)
        groups = [scene.groups for scene in test]
        torch.manual_seed(asked.seed[0])
        print(f"not trained        {100 * region_f1(RegionParser().found(test), groups):.1f}")
        print(f"closest colours    {100 * region_f1(Forest.from_parents(list(map(by_colour, test))), groups):.1f}")
        scores = []
        for seed in asked.seed:
            made = trained(scenes(asked.train, seed), asked.epochs, seed)
            trees = made.found(test)
            scores.append(100 * region_f1(trees, groups))
            print(f"trained, seed {seed}    {scores[-1]:.1f}", flush=True)
            if asked.plot and seed == asked.seed[0]:
                draw(test[:6], made.found(test[:6]), asked.plot)
        if len(scores) > 1:
            print(f"mean               {statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}")
    except RitornelloError as error:
        sys.exit(f"scenes: {error}")


if __name__ == "__main__":
    main()
