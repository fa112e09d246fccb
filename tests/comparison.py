"""How tests compare: by a table of tolerances, on any nest of tensors; `test_comparison.py` shows that it can fail."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Tolerance(NamedTuple):
    """|actual - expected| may be `absolute + relative · |expected|`."""

    relative: float
    absolute: float


TOLERANCES = {
    torch.float64: Tolerance(1e-9, 1e-11),
    torch.float32: Tolerance(1e-4, 1e-5),
    torch.bfloat16: Tolerance(3e-2, 1e-2),
}


def assert_close(actual: Any, expected: Any, name: str = "value") -> None:
    """Fails unless both have the same nesting, shapes and, within the tolerance of `actual`'s dtype, values.

    NaN is the poison that tests put where nothing may be read, so a NaN fails on either side, equal or not. The
    expected values may come from NumPy or in a higher precision, never in a lower one.
    """
    if isinstance(expected, dict):
        assert isinstance(actual, dict), f"{name} is {type(actual).__name__}, expected a dict"
        assert list(actual) == list(expected), f"{name} has the keys {list(actual)}, expected {list(expected)}"
        for key in expected:
            assert_close(actual[key], expected[key], f"{name}.{key}")
        return
    if isinstance(expected, (tuple, list)):
        assert isinstance(actual, (tuple, list)), (
            f"{name} is {type(actual).__name__}, expected a {type(expected).__name__}"
        )
        assert len(actual) == len(expected), f"{name} has {len(actual)} parts, expected {len(expected)}"
        names = getattr(expected, "_fields", range(len(expected)))
        for key, one, other in zip(names, actual, expected, strict=True):
            assert_close(one, other, f"{name}.{key}")
        return
    assert isinstance(actual, Tensor), f"{name} is {type(actual).__name__}, expected a tensor"
    assert isinstance(expected, (Tensor, np.ndarray)), f"{name}: the oracle gave {type(expected).__name__}"
    expected = expected if isinstance(expected, Tensor) else torch.from_numpy(np.array(expected))
    assert actual.dtype in TOLERANCES, f"{name} has dtype {actual.dtype}, which has no tolerance"
    assert expected.dtype in TOLERANCES, f"{name}: the oracle's dtype {expected.dtype} has no tolerance"
    assert expected.itemsize >= actual.itemsize, f"{name} is {actual.dtype} but its oracle only {expected.dtype}"
    assert actual.shape == expected.shape, f"{name} has shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    _assert_near(actual.detach(), expected.detach(), TOLERANCES[actual.dtype], name)


def _assert_near(actual: Tensor, expected: Tensor, tolerance: Tolerance, name: str) -> None:
    actual, expected = actual.double(), expected.double()
    for what, value in (("it", actual), ("its oracle", expected)):
        bad = value.isnan().nonzero()
        assert not len(bad), f"{name}: {what} holds NaN at {bad[0].tolist()} and {len(bad) - 1} other places"
    same = actual == expected  # infinities too
    distance = torch.where(same, 0, (actual - expected).abs())
    excess = distance - (tolerance.absolute + tolerance.relative * expected.abs()).where(~same, 0)
    far = ((excess > 0) | ~distance.isfinite()).nonzero()
    if len(far):
        worst = tuple(far[int(excess[tuple(far.T)].argmax())].tolist())
        raise AssertionError(
            f"{name} differs at {len(far)} of {actual.numel()} places, most at {list(worst)}: {actual[worst]:.9g}, "
            f"expected {expected[worst]:.9g}"
        )


def weighted(values: Any, seed: int = 0) -> Tensor:
    """A random linear form of every tensor in a nest: one scalar, whose gradient reaches all of them."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64)
    for value in flat(values):
        weights = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        total = total + (value * weights.to(value.dtype)).sum()
    return total


def gradients(values: Any, inputs: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """The gradient of `weighted(values)` with respect to each input, zeros where it does not depend on it."""
    anchor = torch.zeros((), dtype=torch.float64, requires_grad=True)  # for values that depend on none of them
    loss = weighted(values, seed) + anchor
    leaves = list(inputs.values())
    found = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
    return dict(zip(inputs, found, strict=True))


def flat(values: Any) -> list[Tensor]:
    """The tensors of a nest of tuples, in order."""
    return [values] if isinstance(values, Tensor) else [tensor for value in values for tensor in flat(value)]
