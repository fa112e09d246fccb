"""Whether contenders compute the same: no time is taken before they do."""

from __future__ import annotations

import torch
from torch import Tensor

from ritornello.bench.contenders import Answer
from ritornello.errors import RitornelloError

# The largest difference over the largest expected value of each tensor.
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-10, torch.bfloat16: 5e-2}


class Mismatch(RitornelloError, ArithmeticError):
    """Two contenders do not compute the same."""


def agree(who: str, found: Answer, oracle: Answer, dtype: torch.dtype) -> float:
    """The largest relative difference of outputs and gradients.

    Args:
        who: of whom to speak.
        found: its answer; gradients that it lacks are not compared.
        oracle: what is expected.
        dtype: what was computed with.

    Raises:
        Mismatch: a difference beyond the tolerance, NaN, or another shape.
    """
    pairs = {"outputs": (found.outputs, oracle.outputs)}
    pairs |= {f"gradient of {name}": (value, oracle.gradients[name]) for name, value in found.gradients.items()}
    worst = 0.0
    for name, (value, expected) in pairs.items():
        distance = _distance(value, expected)
        if not distance <= TOLERANCES[dtype]:
            raise Mismatch(
                f"{who} is wrong: {name} differs by {distance:.2e} of its largest value where "
                f"{TOLERANCES[dtype]:.0e} is allowed; it was not timed."
            )
        worst = max(worst, distance)
    return worst


def _distance(value: Tensor, expected: Tensor) -> float:
    if value.shape != expected.shape:
        return float("inf")
    if not value.numel():
        return 0.0
    value, expected = value.double(), expected.double()
    largest = float(expected.abs().max())
    return float((value - expected).abs().max()) / (largest or 1.0)
