"""The comparison helpers can fail: each way of being wrong is caught, with a message that says where."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from comparison import TOLERANCES, assert_close, flat, gradients, weighted

State = namedtuple("State", "h c")
ONE = torch.ones(2, 3)
NAN = torch.tensor([[1.0, 1.0, 1.0], [1.0, float("nan"), 1.0]])
INF = torch.tensor([1.0, float("inf")])


def test_equal_nests_pass() -> None:
    assert_close(State(ONE, (ONE, [ONE])), State(ONE, (ONE.double(), [np.ones((2, 3))])))
    assert_close({"a": ONE}, {"a": ONE})
    assert_close(INF, INF)
    assert_close(torch.zeros(0, 3), torch.zeros(0, 3))


@pytest.mark.parametrize(
    ("actual", "expected", "message"),
    [
        (ONE, ONE + 0.01, r"^value differs at 6 of 6 places, most at \[0, 0\]: 1, expected 1.0"),
        (torch.tensor([0.0, 2.0, 9.0]), torch.tensor([0.0, 1.0, 1.0]), r"differs at 2 of 3 places, most at \[2\]"),
        (NAN, ONE, r"^value: it holds NaN at \[1, 1\] and 0 other places"),
        (NAN, NAN, r"^value: it holds NaN"),
        (ONE, NAN, r"^value: its oracle holds NaN"),
        (INF, -INF, "differs at 2 of 2"),
        (INF, torch.ones(2), r"differs at 1 of 2 places, most at \[1\]: inf, expected 1"),
        (torch.ones(2), INF, r"differs at 1 of 2 places, most at \[1\]: 1, expected inf"),
        (ONE, torch.ones(3), r"shape \(2, 3\), expected \(3,\)"),
        (torch.zeros(0, 3), torch.zeros(3, 0), r"shape \(0, 3\), expected \(3, 0\)"),
        (ONE.double(), ONE, "oracle only torch.float32"),
        (ONE.int(), ONE, "dtype torch.int32, which has no tolerance"),
        (ONE, ONE.int(), "oracle's dtype torch.int32 has no tolerance"),
        (None, ONE, "value is NoneType, expected a tensor"),
        (ONE, None, "oracle gave NoneType"),
        (State(ONE, ONE + 1), State(ONE, ONE), r"^value\.c differs"),
        ((ONE,), (ONE, ONE), "1 parts, expected 2"),
        (ONE, (ONE,), "value is Tensor, expected a"),
        ({"a": (ONE, 2 * ONE)}, {"a": (ONE, ONE)}, r"^value\.a\.1 differs"),
        ({"a": ONE}, {"b": ONE}, r"keys \['a'\], expected \['b'\]"),
        (ONE, {"b": ONE}, "value is Tensor, expected a dict"),
    ],
)
def test_every_difference_fails(actual: Any, expected: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_close(actual, expected)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("size", [0.0, 1.0, 100.0])
def test_the_tolerance_is_the_table_s(dtype: torch.dtype, size: float) -> None:
    tolerance = TOLERANCES[dtype]
    allowed = tolerance.absolute + tolerance.relative * size
    actual = torch.tensor([size], dtype=dtype)
    assert_close(actual, np.array([size - 0.9 * allowed]))
    with pytest.raises(AssertionError, match="differs at 1 of 1"):
        assert_close(actual, np.array([size - 1.1 * allowed]))


def test_tolerances_grow_with_the_grain_of_the_dtype() -> None:
    for dtype, tolerance in TOLERANCES.items():
        assert 0 < tolerance.relative < torch.finfo(dtype).eps ** 0.5, dtype


def test_weighted_reaches_every_tensor() -> None:
    values = State(torch.randn(2, 3), (torch.randn(4), torch.randn(1)))
    for position, value in enumerate(flat(values)):
        changed = [other.clone() for other in flat(values)]
        changed[position][..., -1] += 1
        assert weighted(changed) != weighted(values), (position, value)


def test_gradients_are_the_weights_and_zero_where_unused() -> None:
    x, unused = torch.randn(3, requires_grad=True), torch.randn(2, requires_grad=True)
    found = gradients((2 * x,), {"x": x, "unused": unused}, seed=5)
    weights = torch.randn(3, generator=torch.Generator().manual_seed(5), dtype=torch.float64).float()
    assert_close(found, {"x": 2 * weights, "unused": torch.zeros(2)})
    constant = gradients((torch.ones(2),), {"x": x})
    assert_close(constant, {"x": torch.zeros(3)})
