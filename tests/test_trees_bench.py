"""The benchmark over trees: what it times it compares first, and it says what each way took."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import ritornello as rit
from ritornello.processor import has_bfloat16
from ritornello.structures import Forest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import trees

TREES = "(1 (1 (1 a) (0 film)) (1 (1 to) (1 see)))\n(0 (0 not) (1 good))\n(1 fine)\n"
SHORT = ("--seconds", "0.2", "--threads", "1", "--units", "8", "--batch", "3", "--epochs", "1", "--deep", "4")


def test_every_way_and_size_has_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trees.txt").write_text(TREES * 3)
    trees.main(["--trees", str(tmp_path / "trees.txt"), *SHORT])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    halves = ["compiled,", "plain,"] if has_bfloat16() else []
    expected = ["compiled", "reference", "plain,", "plain,", *halves]
    assert [line[1] for line in lines if line[:1] == ["8"]] == expected
    assert [line[1:3] for line in lines if line[:2] == ["an", "epoch"]] == [["epoch", "of"]]
    assert [line[2] for line in lines if line[:2] == ["a", "comb"]] == ["8", "16", "32"]
    assert [line[3] for line in lines if line[:3] == ["of", "one", "leaf"]] == ["4", "8", "16"]


def test_the_twins_are_the_cell_and_what_is_no_twin_is_refused() -> None:
    cell = rit.cells.TreeLSTM(trees.FEATURES, 5)
    forest = Forest.from_parents([[2, 2, 4, 4, -1], [-1]])
    x = torch.randn(len(forest.leaves), trees.FEATURES, requires_grad=True)
    expected = trees.step(lambda x: rit.Unfold(cell).over(forest, x, inputs="leaves")[0], cell, x)()
    trees.alike(trees.step(lambda x: trees.by_level(cell, trees.Levels(forest), 6, x), cell, x)(), expected, 1e-4)
    trees.alike(trees.step(lambda x: trees.by_node(cell, forest, x), cell, x)(), expected, 1e-4)
    with pytest.raises(AssertionError):
        trees.alike(trees.step(lambda x: 1.01 * trees.by_node(cell, forest, x)[-1], cell, x)(), expected, 1e-4)
