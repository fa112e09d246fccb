"""The ceiling: the fastest matrix product that torch has on this machine, by MKL or by oneDNN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from ritornello.bench.clock import interleave

SIZES = ((1024, 1024, 1024), (2048, 512, 2048), (4096, 512, 1024), (1024, 1024, 4096), (2048, 1024, 2048))


class Ceiling(NamedTuple):
    """The fastest product.

    Attributes:
        name: how it is called.
        size: (rows, depth, columns).
        rate: operations a second.
        call: does it once more.
        others: the best rate of each way to call.
    """

    name: str
    size: tuple[int, int, int]
    rate: float
    call: Callable[[], Any]
    others: dict[str, float]

    @property
    def flops(self) -> float:
        """Of one call."""
        return flops(self.size)


def flops(size: tuple[int, int, int]) -> float:
    """Of a product (rows, depth) by (depth, columns).

    >>> flops((2, 3, 4))
    48.0
    """
    return 2.0 * size[0] * size[1] * size[2]


def find_ceiling(dtype: torch.dtype, seconds: float) -> Ceiling:
    """Tries every way to call and every size, in turns."""
    calls: dict[tuple[str, tuple[int, int, int]], Callable[[], Any]] = {}
    with torch.no_grad():
        for size in SIZES:
            calls |= {(name, size): call for name, call in _ways(size, dtype)}
        times = interleave({f"{name} {size}": call for (name, size), call in calls.items()}, seconds)
    rates = {key: flops(key[1]) / times[f"{key[0]} {key[1]}"].best for key in calls}
    name, size = max(rates, key=lambda key: rates[key])
    others: dict[str, float] = {}
    for (way, _), rate in rates.items():
        others[way] = max(rate, others.get(way, 0.0))
    return Ceiling(name, size, rates[name, size], calls[name, size], others)


def _ways(size: tuple[int, int, int], dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The calls that this torch and this processor have, each called once."""
    rows, depth, columns = size
    a, w = torch.randn(rows, depth).to(dtype), torch.randn(columns, depth).to(dtype)
    b = w.t().contiguous()
    ops: Any = torch.ops.mkldnn

    def packed() -> Callable[[], Any]:
        ready = ops._reorder_linear_weight(w, rows)
        return lambda: ops._linear_pointwise(a, ready, None, "none", [], "")

    ways: dict[str, Callable[[], Callable[[], Any]]] = {
        "torch.mm": lambda: lambda: torch.mm(a, b),
        "F.linear": lambda: lambda: F.linear(a, w),
        "torch.ops.mkldnn._linear_pointwise": lambda: lambda: ops._linear_pointwise(a, w, None, "none", [], ""),
        "torch.ops.mkldnn._linear_pointwise, weight reordered": packed,
    }
    for name, make in ways.items():
        try:
            call = make()
            call()
        except (AttributeError, RuntimeError, TypeError):  # not in this torch, or not for this processor or dtype
            continue
        yield name, call


def region_cost(threads: int) -> float | None:
    """Seconds that torch needs to hand work to its other threads and to wait for them; None for one thread.

    The host of a virtual machine may put its cores near to one another or far apart, and change that within minutes.
    """
    if threads < 2:
        return None
    grain = 32768
    part, whole = torch.zeros(grain, dtype=torch.uint8), torch.zeros(threads * grain, dtype=torch.uint8)
    calls = {"part": part.zero_, "whole": whole.zero_}
    for call in calls.values():
        call()
    times = interleave(calls, 0.02)
    return max(times["whole"].best - times["part"].best, 0.0)
