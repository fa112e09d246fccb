"""The first call of a cell, in a process of its own: `python -m ritornello.bench.first_call` is that process."""

from __future__ import annotations

import builtins
import gc
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ritornello.errors import RitornelloError

if TYPE_CHECKING:
    from ritornello.bench.settings import Settings

SHAPE = (2, 2, 128)  # so small that computing takes nearly no time
PHASES = {
    "trace": ("trace",),
    "passes": ("unroll", "simplify"),
    "adjoint": ("derive",),
    "lowering": ("lower", "encode"),
    "machine": ("Code",),
}
REPEATS = 3


def first_calls(name: str, settings: Settings) -> dict[str, Any]:
    """The middle one of some processes, in milliseconds.

    Returns:
        cell; first_ms: forward and backward without what Python imports meanwhile; second_ms: the same once more;
        import_ms; phases: of the first, in milliseconds, "rest" being the run itself.
    """
    words = [name, settings.dtype, settings.executor, str(settings.threads)]
    source = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))
    found = []
    for _ in range(REPEATS if settings.seconds >= 0.5 else 1):
        done = subprocess.run(
            [sys.executable, "-m", "ritornello.bench.first_call", *words],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )
        if done.returncode:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            raise RitornelloError(f"The first call of {name!r} failed in its process: {last}")
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return sorted(found, key=lambda each: each["first_ms"])[len(found) // 2]


class Profile:
    """Seconds that are spent in each phase itself, not in those that it calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[float] = []  # for each phase under way, what its inner phases took

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts what happens within."""
        began = time.perf_counter()
        self._open.append(0.0)
        try:
            yield
        finally:
            took = time.perf_counter() - began
            self.seconds[name] += took - self._open.pop()
            if self._open:
                self._open[-1] += took

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, counted as that phase."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

        return call

    def watch(self) -> None:
        """From now on counts imports and, wherever ritornello's modules know them, the functions of the phases."""
        import ritornello.program

        modules = [module for name, module in sys.modules.items() if name.startswith("ritornello.")]
        for phase, names in PHASES.items():
            for name in names:
                owner: Any = sys.modules.get("ritornello._core") if phase == "machine" else ritornello.program
                original: Any = getattr(owner, name, None)
                if original is None:
                    continue
                counted = self.timed(phase, original)
                for module in modules:
                    if getattr(module, name, None) is original:
                        setattr(module, name, counted)
        builtins.__import__ = self.timed("imports", builtins.__import__)


def main(name: str, dtype: str, executor: str, threads: int) -> None:
    """Times the first two calls of a cell and prints them as JSON."""
    import torch

    from ritornello.bench.contenders import make_case, ours
    from ritornello.bench.roster import entries
    from ritornello.bench.settings import DTYPES

    torch.set_num_threads(threads)
    one = torch.ones(2, 2, requires_grad=True)
    torch.autograd.grad((one @ one).sum(), one)  # torch itself has worked before
    (entry,) = entries([name])
    contender = ours(make_case(entry.make, SHAPE, dtype=DTYPES[dtype], executor=executor))
    profile = Profile()
    profile.watch()
    plain = builtins.__import__
    took = []
    gc.collect()
    gc.disable()  # as in all timings: what it finds to collect are torch's modules, 0.1 s that fall on anyone
    for _ in range(2):
        began = time.perf_counter()
        with profile.phase("rest"):
            contender.both()
        took.append(1e3 * (time.perf_counter() - began))
        if len(took) == 1:
            first = {phase: 1e3 * seconds for phase, seconds in profile.seconds.items()}
    builtins.__import__ = plain
    imports = first.pop("imports", 0.0)
    phases = {phase: first.get(phase, 0.0) for phase in (*PHASES, "rest")}
    answer = {"cell": name, "first_ms": took[0] - imports, "second_ms": took[1], "import_ms": imports, "phases": phases}
    print(json.dumps(answer))


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
    except RitornelloError as error:
        raise SystemExit(str(error)) from error
