"""The benchmark that puts regions of pictures together."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from ritornello.data.scenes import Scene

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import scenes


def row_of(*reds: float) -> Scene:
    """Regions of these reds on a line."""
    count = len(reds)
    features = np.zeros((count, scenes.FEATURES), np.float32)
    features[:, 0] = reds
    near = np.abs(np.subtract.outer(range(count), range(count))) == 1
    boxes = np.array([(place, 0.0, place + 1.0, 1.0) for place in range(count)])
    return Scene(features, near, np.ones((1, count), bool), boxes)


def test_closest_colours_by_hand() -> None:
    # 0.5 with 0.56; 0.0 with 0.1, whose mean 0.05 is nearer to 0.22 than 0.53 is
    assert scenes.by_colour(row_of(0.0, 0.1, 0.22, 0.5, 0.56)) == [6, 6, 7, 5, 5, 8, 7, 8, -1]
    assert scenes.by_colour(row_of(0.3)) == [-1]


def test_borders_by_hand() -> None:
    one, other = np.array([0.0, 0.0, 0.5, 1.0]), np.array([0.5, 0.25, 1.0, 2.0])
    assert scenes.border(one, other) == scenes.border(other, one) == ((0.5, 0.5), (0.25, 1.0))


def test_it_learns_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--train", "60", "--test", "20", "--epochs", "2", "--seed", "1", "2", "--plot", str(tmp_path / "a.png")]
    scenes.main(asked)
    told = [line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    scores = {name.strip(): float(score) for name, score in told}
    assert list(scores)[:4] == ["not trained", "closest colours", "trained, seed 1", "trained, seed 2"]
    assert scores["not trained"] + 20 < scores["trained, seed 1"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_wrong_is_told_first(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"scenes: 'a\.bmp' does not end in a kind of picture"):
        scenes.main(["--plot", "a.bmp"])
    with pytest.raises(SystemExit):
        scenes.main(["--epochs", "0"])
    assert "must be at least 1" in capsys.readouterr().err
