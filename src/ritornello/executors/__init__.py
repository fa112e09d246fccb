"""Executors: ways to run an unfolding, with one signature. `auto` takes the first that supports the request."""

from __future__ import annotations

from ritornello.errors import ArgumentError, nearest
from ritornello.executors.cpu import CpuExecutor
from ritornello.executors.reference import ReferenceExecutor
from ritornello.executors.request import Executor, Request, Result
from ritornello.executors.run import TYPES

EXECUTORS: dict[str, Executor] = {executor.name: executor for executor in (CpuExecutor(), ReferenceExecutor())}

__all__ = ["EXECUTORS", "TYPES", "Executor", "Request", "Result", "check_name", "choose"]


def check_name(name: str) -> None:
    """Raises ArgumentError unless `name` is an executor's or "auto"."""
    if name != "auto" and name not in EXECUTORS:
        raise ArgumentError(f"Unknown executor {name!r}: {nearest(name, ['auto', *EXECUTORS])}.")


def choose(name: str, request: Request) -> Executor:
    """The executor of that name, or for "auto" the first that supports the request.

    Raises:
        ArgumentError: a named executor that cannot run the request, or none can, with the reasons.
    """
    if name == "auto":
        reasons = {}
        for executor in EXECUTORS.values():
            reasons[executor.name] = executor.supports(request)
            if reasons[executor.name] is None:
                return executor
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise ArgumentError(f"No executor can run this ({told}).")
    executor = EXECUTORS[name]
    reason = executor.supports(request)
    if reason is not None:
        raise ArgumentError(f"Executor {name!r} cannot run this: {reason}; use executor='auto' to let another take it.")
    return executor
