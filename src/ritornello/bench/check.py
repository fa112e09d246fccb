"""Whether contenders compute the same as the Python loop: no time is taken before they do."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ritornello.bench.contenders import Answer, Case, loop
from ritornello.errors import RitornelloError

# The largest difference over the largest expected value of each tensor.
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-10, torch.bfloat16: 3e-2}
FINER = {torch.bfloat16: torch.float32, torch.float32: torch.float64}
SUMMED = {torch.bfloat16: 5.0}  # rivals sum a parameter's gradient over the steps in the precision of the case
TIMES_THE_LOOP = 4.0
BLIND = 10.0  # times the tolerance: a loop by which more than that would be allowed proves nothing


class Mismatch(RitornelloError, ArithmeticError):
    """Two contenders do not compute the same."""


class Oracle:
    """The loop's answer to a case.

    Some cells are so sensitive that rounding alone takes them beyond the tolerance. Where that happens, the loop in a
    finer precision decides: a contender may be some times as far from it as the loop in the precision of the case.

    Args:
        case: what is computed.
        backward: whether gradients are to be compared; without it the loop does not compute them.
    """

    def __init__(self, case: Case, backward: bool = True) -> None:
        self.case = case
        self.backward = backward
        self.dtype = case.x.dtype
        contender = loop(case)
        if backward:
            self.answer = contender.answer(contender.both())
        else:
            self.answer = Answer(contender.outputs(contender.forward()), {})

    @cached_property
    def finer(self) -> Oracle:
        """The loop in a finer precision."""
        return Oracle(self.case.to(FINER[self.dtype]), self.backward)

    def agree(self, who: str, found: Answer, rival: bool = False) -> float:
        """The largest relative difference of outputs and gradients.

        Args:
            who: of whom to speak.
            found: its answer; gradients that it lacks are not compared.
            rival: whether it is somebody else's, of whose parameters' gradients less is asked in half precision.

        Raises:
            Mismatch: a difference beyond what is allowed, NaN, or another shape; or a loop too inexact to tell.
        """
        distances = _distances(found, self.answer)
        tolerance = TOLERANCES[self.dtype]
        summed = tolerance * SUMMED.get(self.dtype, 1.0) if rival else tolerance
        allowed = {name: tolerance if name in ("outputs", "gradient of x") else summed for name in distances}
        if _beyond(distances, allowed) and self.dtype in FINER:
            distances = _distances(found, self.finer.answer)
        if (beyond := _beyond(distances, allowed)) and self.dtype in FINER:
            own = _distances(self.answer, self.finer.answer)
            allowed = {name: max(allowed[name], TIMES_THE_LOOP * own[name]) for name in distances}
            if max(allowed[name] for name in beyond) > BLIND * tolerance:
                blind = max(own[name] for name in beyond)
                raise Mismatch(
                    f"{who} cannot be checked: rounding alone moves the Python loop by {blind:.2e}; "
                    f"give the cell other initial weights, or say --dtype float64."
                )
        if wrong := _beyond(distances, allowed):
            name = wrong[0]
            raise Mismatch(
                f"{who} is wrong: {name} differs by {distances[name]:.2e} of its largest value where "
                f"{allowed[name]:.0e} is allowed; it was not timed."
            )
        return max(distances.values())


def _beyond(distances: dict[str, float], allowed: dict[str, float]) -> list[str]:
    return [name for name, distance in distances.items() if not distance <= allowed[name]]  # NaN too


def _distances(found: Answer, expected: Answer) -> dict[str, float]:
    pairs = {"outputs": (found.outputs, expected.outputs)}
    pairs |= {f"gradient of {name}": (value, expected.gradients[name]) for name, value in found.gradients.items()}
    return {name: relative(*pair) for name, pair in pairs.items()}


def relative(value: Tensor, expected: Tensor) -> float:
    """The largest difference, over the largest expected value."""
    if value.shape != expected.shape:
        return float("inf")
    if not value.numel():
        return 0.0
    value, expected = value.double(), expected.double()
    largest = float(expected.abs().max())
    return float((value - expected).abs().max()) / (largest or 1.0)
