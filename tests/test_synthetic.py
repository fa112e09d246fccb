"""Generated tasks: NumPy reads each answer off its sequence; baselines by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ritornello.data.synthetic import ADDING_BASELINE, adding, copying, copying_baseline
from ritornello.errors import ArgumentError


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("time", [2, 3, 10, 201])
def test_adding_is_the_sum_of_one_marked_number_in_each_half(time):
    x, y = adding(time, 64, seeded())
    assert x.shape == (time, 64, 2)
    assert x.dtype == y.dtype == torch.float32
    numbers, marks = x.numpy().transpose(2, 1, 0)
    for row, marked, wanted in zip(numbers, marks, y.numpy(), strict=True):
        places = np.flatnonzero(marked)
        assert sorted(set(marked)) == [0.0, 1.0] or time == 2
        assert len(places) == 2
        assert places[0] < time // 2 <= places[1]
        assert row[places[0]] + row[places[1]] == wanted
    assert 0 <= numbers.min() <= numbers.max() < 1


def test_adding_marks_every_place_equally_often():
    x, _ = adding(11, 22_000, seeded())
    share = x[..., 1].mean(1).numpy()
    np.testing.assert_allclose(share, [1 / 5] * 5 + [1 / 6] * 6, atol=0.012)


def test_adding_without_memory_scores_the_baseline():
    _, y = adding(20, 200_000, seeded())
    error = y.numpy().astype(np.float64) - 1
    assert np.mean(error**2) == pytest.approx(ADDING_BASELINE, abs=2e-3)


@pytest.mark.parametrize("delay", [1, 2, 10, 100])
def test_copying_asks_for_each_symbol_delay_plus_ten_steps_later(delay):
    x, y = (part.numpy().T for part in copying(delay, 32, seeded()))
    assert x.shape == y.shape == (32, delay + 20)
    for given, wanted in zip(x, y, strict=True):
        assert set(given[:10]) <= set(range(8))
        assert np.flatnonzero(given == 9).tolist() == [delay + 9]
        assert set(given[10:]) == {8, 9}
        assert (wanted[: delay + 10] == 8).all()
        assert (wanted[delay + 10 :] == given[:10]).all()


def test_copying_draws_every_symbol_equally_often():
    x, _ = copying(5, 8_000, seeded())
    share = np.bincount(x[:10].flatten().numpy(), minlength=8) / 80_000
    np.testing.assert_allclose(share, np.full(8, 1 / 8), atol=0.006)


@pytest.mark.parametrize("delay", [1, 100, 500])
def test_copying_without_memory_scores_the_baseline(delay):
    """Of answers that do not know the sequence, the shares of each symbol at each step are the best."""
    _, y = copying(delay, 4_000, seeded())
    shares = np.stack([(y.numpy() == symbol).mean(1) for symbol in range(9)], -1)
    nats = -np.log(np.take_along_axis(shares, y.numpy(), -1)).mean()
    assert nats == pytest.approx(copying_baseline(delay), rel=2e-3)
    assert copying_baseline(delay) == 10 * math.log(8) / (delay + 20)


@pytest.mark.parametrize("draw", [adding, copying])
def test_a_seed_draws_the_same_and_another_seed_does_not(draw):
    torch.manual_seed(5)
    one, own = draw(30, 4, seeded()), torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(own, torch.rand(3)), "the global generator was used"
    for first, again, other in zip(one, draw(30, 4, seeded()), draw(30, 4, seeded(2)), strict=True):
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
    generator = seeded()
    draw(30, 4, generator)
    assert not torch.equal(draw(30, 4, generator)[0], one[0]), "the generator does not go on"


@pytest.mark.parametrize(
    ("draw", "size", "batch", "message"),
    [
        (adding, 1, 4, r"^adding: time must be an integer of at least 2, not 1\.$"),
        (adding, 10, 0, r"^adding: batch must be an integer of at least 1, not 0\.$"),
        (copying, 0, 4, r"^copying: delay must be an integer of at least 1, not 0\.$"),
        (copying, 2.5, 4, r"^copying: delay must be an integer of at least 1, not 2\.5\.$"),
        (copying, 2, -1, r"^copying: batch must be an integer of at least 1, not -1\.$"),
    ],
)
def test_sizes_that_do_not_fit(draw, size, batch, message):
    with pytest.raises(ArgumentError, match=message):
        draw(size, batch, seeded())
