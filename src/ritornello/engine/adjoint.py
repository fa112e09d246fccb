r"""Adjoints: how gradients go back through time. Each is a client of the engine, never a second copy of the recurrence.

An adjoint takes a request and a way to run it. What comes out has the values of the plain run; the gradients are exact,
or, for the truncated and the randomized ones, as their equations say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ritornello.cells.adapt import name_of
from ritornello.engine.influence import accumulate_forward
from ritornello.errors import ArgumentError, nearest
from ritornello.executors import Request, Result
from ritornello.structures import Schedule, row_levels, row_sources

Run = Callable[[Request], Result]
CHECKPOINTED = "checkpointed"


class Adjoint:
    """A way back through time.

    Attributes:
        name: as texts call it.
    """

    name: str

    @property
    def gist(self) -> str:
        """What it does, in a line."""
        return (type(self).__doc__ or "").partition("\n")[0].partition(": ")[2]

    def unfold(self, request: Request, run: Run) -> Result:
        """The request's result, whose gradients go back this way."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Full(Adjoint):
    """Back-propagation through time: keeps what every step computed."""

    name = "full"

    def unfold(self, request: Request, run: Run) -> Result:
        return run(request)


@dataclass(frozen=True)
class Checkpointed(Adjoint):
    """Exact: keeps O(√T) states beyond inputs and outputs, and computes the steps between once more."""

    name = CHECKPOINTED

    def unfold(self, request: Request, run: Run) -> Result:
        return run(replace(request, checkpointed=True))


@dataclass(frozen=True)
class Forward(Adjoint):
    """Real-time recurrent learning: ∂h/∂θ is carried forwards, from step to step (Williams & Zipser 1989)."""

    name = "forward"

    def unfold(self, request: Request, run: Run) -> Result:
        return accumulate_forward(request, run) if torch.is_grad_enabled() else run(request)


@dataclass(frozen=True)
class Truncated(Adjoint):
    """Truncated back-propagation through time: losses reach back a bounded number of steps.

    Every k1 steps the losses of these k1 steps are propagated back through the k2 steps that end with them (Williams &
    Peng 1990; Jaeger 2002). States carry on forwards unharmed: all values are those of "full". Steps are counted in the
    order of the walk. Costs as much as ⌈k2 / k1⌉ full unfoldings.

    Args:
        k1: steps of a window.
        k2: steps that its losses go back through, counted from its end; at least k1.
        checkpointed: keep O(√T) states, as the adjoint of this name does.

    Raises:
        ArgumentError: k1 below 1, or k2 below k1.

    Example:
        >>> import torch, ritornello as rit
        >>> x = torch.ones(6, 1, 1, requires_grad=True)
        >>> outputs, _ = rit.Unfold(rit.Elman(1, 1), adjoint=rit.Truncated(2, 3))(x)
        >>> outputs[5].backward()
        >>> (x.grad.flatten() != 0).tolist()
        [False, False, False, True, True, True]
    """

    k1: int
    k2: int
    checkpointed: bool = field(default=False, kw_only=True)

    name = "truncated"

    def __post_init__(self) -> None:
        for name, value in (("k1", self.k1), ("k2", self.k2)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ArgumentError(f"{name} must be a positive integer, not {value!r}.")
        if self.k2 < self.k1:
            raise ArgumentError(
                f"k2 is {self.k2}; it must be at least k1, {self.k1}: losses reach back to their window's own start."
            )

    def __str__(self) -> str:
        return f"{self.name}:{self.k1},{self.k2}{f',{CHECKPOINTED}' * self.checkpointed}"

    def unfold(self, request: Request, run: Run) -> Result:
        """As many runs of the same values as windows overlap; each row is taken from the run that its window is in.

        Windows of one run do not overlap, so that in it the way back is cut where each of them begins to reach.
        """
        request = replace(request, checkpointed=self.checkpointed)
        steps = row_levels(request.schedule)
        windows, runs = -(-len(request.schedule.levels) // self.k1), -(-self.k2 // self.k1)
        if not torch.is_grad_enabled() or self.k2 >= windows * self.k1:
            return run(request)
        found = []
        for number in range(runs):
            cut = (steps - (number + 1) * self.k1 + self.k2) % (runs * self.k1) == 0
            with _numbers_drawn_again(request.x, number + 1 < runs):
                found.append(run(replace(request, damping=_damping(request, torch.where(cut, 0.0, 1.0)))))
        return found[0] if runs == 1 else _chosen(found, steps // self.k1 % runs, request.schedule)


@dataclass(frozen=True)
class Randomized(Adjoint):
    r"""Randomized truncation of back-propagation through time: stopped at random, and still unbiased.

    Backwards, at each step of each sequence the gradient stops with probability p; else it is multiplied by
    1 / (1 - p), so that its expectation is the full gradient (Tallec & Ollivier 2017). Drawn from torch's generator
    when the unfolding is called.

    Args:
        p: probability, 0 ≤ p < 1; or a sequence or tensor of them, one for each step, in the order of the walk.
        checkpointed: keep O(√T) states, as the adjoint of this name does.

    Raises:
        ArgumentError: a probability out of its range; when called, fewer probabilities than steps.

    Example:
        >>> import torch, ritornello as rit
        >>> unfold = rit.Unfold(rit.GRU(3, 4), adjoint=rit.Randomized(0.05))
        >>> unfold(torch.randn(50, 2, 3))[0].sum().backward()
        >>> unfold.adjoint
        Randomized(p=0.05, checkpointed=False)
    """

    p: float | Sequence[float] | Tensor
    checkpointed: bool = field(default=False, kw_only=True)

    name = "randomized"

    def __post_init__(self) -> None:
        try:
            p = torch.as_tensor(self.p, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise ArgumentError(f"p must be a number or one number for each step, not {self.p!r}.") from error
        if p.dim() > 1:
            raise ArgumentError(f"p must be a number or one number for each step, not of shape {tuple(p.shape)}.")
        for each in p.flatten().tolist():
            if not 0 <= each < 1:
                raise ArgumentError(f"p must lie in 0 to 1 (exclusive), not {each!r}.")
        object.__setattr__(self, "p", tuple(p.tolist()) if p.dim() else float(p))

    def __str__(self) -> str:
        p = str(self.p) if isinstance(self.p, float) else "…"
        return f"{self.name}:{p}{f',{CHECKPOINTED}' * self.checkpointed}"

    def unfold(self, request: Request, run: Run) -> Result:
        request = replace(request, checkpointed=self.checkpointed)
        if not torch.is_grad_enabled():
            return run(request)
        steps, count = row_levels(request.schedule), len(request.schedule.levels)
        p = torch.tensor(self.p, dtype=torch.float64, device="cpu")
        if p.dim() and len(p) < count:
            raise ArgumentError(f"p holds {len(p)} probabilities for {count} steps; give one for each.")
        p = p[steps] if p.dim() else p.expand(len(steps))
        factors = (1 / (1 - p)).to(request.x.dtype)  # rounded: it goes on as often as makes these unbiased
        goes_on = torch.rand(len(steps), dtype=torch.float64, device="cpu") * factors.double() < 1
        return run(replace(request, damping=_damping(request, factors * goes_on)))


def _damping(request: Request, factors: Tensor) -> Tensor:
    """Factors for the request; what a sequence enters with is read, not stepped to, so that it is never damped."""
    enters = row_sources(request.schedule) < request.schedule.first_row
    x = request.x
    return factors.to(x).masked_fill(enters.to(x.device), 1.0).unsqueeze(-1)


def _numbers_drawn_again(x: Tensor, again: bool) -> Any:
    """What a cell draws at random within it is drawn once more after it, if `again`."""
    devices = [] if x.device.type == "cpu" else [x.device]
    kind = x.device.type if devices else "cuda"
    return torch.random.fork_rng(devices, enabled=again, device_type=kind)


def _chosen(results: Sequence[Result], number: Tensor, schedule: Schedule) -> Result:
    """Each row from the result with its number; a final state from that of the row which computed it."""
    last = _last_rows(schedule)
    of_last = torch.where(last < 0, 0, number[last]) if len(number) else last
    rows = tuple(_merged(fields, number) for fields in zip(*(result.rows for result in results), strict=True))
    kind = type(results[0].last)
    return Result(rows, kind(*(_merged(f, of_last) for f in zip(*(result.last for result in results), strict=True))))


def _merged(candidates: Sequence[Tensor], number: Tensor) -> Tensor:
    number = number.to(candidates[0].device).unsqueeze(-1)
    merged = candidates[0]
    for k, candidate in enumerate(candidates[1:], 1):
        merged = torch.where(number == k, candidate, merged)
    return merged


def _last_rows(schedule: Schedule) -> Tensor:
    """(entries,) the row of each sequence's final state; negative where it has none."""
    if schedule.last is not None:
        return schedule.last - schedule.first_row
    return torch.arange(schedule.rows - schedule.entries, schedule.rows, device="cpu")


PLAIN = (Full, Checkpointed)  # what executors do by themselves, and as a node of a graph
BY_NAME: dict[str, Callable[..., Adjoint]] = {
    kind.name: kind for kind in (Full, Checkpointed, Truncated, Randomized, Forward)
}


def settle_adjoint(adjoint: str | Adjoint) -> Adjoint:
    """An adjoint, from its text if it is one: "full", "truncated:20,40", "randomized:0.05,checkpointed".

    Raises:
        ArgumentError: a name that there is not, or settings that do not fit.

    Example:
        >>> settle_adjoint("truncated:20,40")
        Truncated(k1=20, k2=40, checkpointed=False)
    """
    if isinstance(adjoint, Adjoint):
        return adjoint
    if not isinstance(adjoint, str):
        raise ArgumentError(f"adjoint must be a text such as 'truncated:20,40', or an adjoint, not {adjoint!r}.")
    name, _, settings = adjoint.partition(":")
    if name not in BY_NAME:
        raise ArgumentError(f"Unknown adjoint {name!r}: {nearest(name, BY_NAME)}.")
    values = [part.strip() for part in settings.split(",")] if settings else []
    options = {}
    if name in ("truncated", "randomized") and CHECKPOINTED in values[1:]:
        values.remove(CHECKPOINTED)
        options[CHECKPOINTED] = True
    try:
        return BY_NAME[name](*map({"truncated": int, "randomized": float}.get(name, str), values), **options)
    except ArgumentError:
        raise
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"Adjoint {adjoint!r} is not understood: write {_SHAPES.get(name, name)}.") from error


_SHAPES = {"truncated": "truncated:K1,K2", "randomized": "randomized:P"}


def check_trees(adjoint: Adjoint, cell: Any) -> None:
    """Raises ArgumentError where an adjoint that knows chains alone is asked to go back over trees."""
    if not isinstance(adjoint, Full):
        raise ArgumentError(
            f"adjoint={str(adjoint)!r} goes back along chains; unfold {name_of(cell)} over trees with adjoint='full'."
        )
