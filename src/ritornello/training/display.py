"""Shows a person how training goes: a progress bar on a terminal, a line an evaluation anywhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from ritornello.training import checkpoint

STAGES = {"scan": "reading", "learn": "learning the vocabulary", "encode": "encoding"}


class Display:
    """A progress bar with loss, tokens a second and time left, and a line an evaluation.

    Use it as a context: `with Display() as display: ritornello.tasks.language_model.train(..., watch=display)`.

    Args:
        console: where to; standard error by default, so that what a command prints can be piped.
        every: least seconds between two refreshes of the bar.
        unit: what is counted: tokens, nodes, sentences.
        measure: what the loss is told in.
        shares: scores between 0 and 1 to tell beside the loss: their names in the row, and in the line.
    """

    def __init__(
        self,
        console: Console | None = None,
        every: float = 0.1,
        unit: str = "tokens",
        shares: Mapping[str, str] | None = None,
        measure: str = "nats",
    ) -> None:
        self.console = console or Console(stderr=True)
        self._unit, self._shares, self._measure = unit, dict(shares or {}), measure
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            auto_refresh=False,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task: TaskID | None = None
        self._every = every
        self._shown = 0.0
        self._loss: float | None = None
        self._tokens = 0
        self._began: tuple[float, float] | None = None

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def preparing(self, stage: str, done: int, total: int) -> None:
        """While the text is read and encoded."""
        self._show(STAGES.get(stage, stage), done / max(total, 1), "")

    def update(self, progress: checkpoint.Progress, fraction: float, loss: float, tokens: int) -> None:
        """After each update of the weights."""
        self._loss = loss if self._loss is None else 0.9 * self._loss + 0.1 * loss
        self._tokens += tokens
        now = time.monotonic()
        if self._began is None:
            self._began, self._tokens = (now, fraction), 0
            return
        if now - self._shown < self._every:
            return
        began, from_fraction = self._began
        left = (now - began) * (1 - fraction) / max(fraction - from_fraction, 1e-9)
        rate = self._tokens / max(now - began, 1e-9)
        note = f"loss {self._loss:.3f} · {rate:,.0f} {self._unit}/s · {clock(left)} left"
        self._show(f"step {progress.step}", fraction, note)

    def evaluated(self, row: dict[str, Any], best: bool) -> None:
        """After each evaluation."""
        self.console.print(
            f"step {row['step']:>6} · {clock(row['seconds'])} · train {row['train_loss']:.4f} · "
            f"valid {row['valid_loss']:.4f} {self._measure} · "
            + "".join(f"{told} {row[name]:.1%} · " for name, told in self._shares.items())
            + f"{row['tokens_per_second']:,.0f} {self._unit}/s"
            + (" · best so far" if best else ""),
            highlight=False,
            soft_wrap=True,
        )

    def _show(self, what: str, fraction: float, note: str) -> None:
        now = time.monotonic()
        if now - self._shown < self._every:
            return
        self._shown = now
        if self._task is None:
            self._task = self._bar.add_task(what, total=1.0, note=note)
        self._bar.update(self._task, description=what, completed=min(fraction, 1.0), note=note, refresh=True)


def clock(seconds: float) -> str:
    """Minutes and seconds.

    >>> clock(75)
    '1:15'
    """
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    return f"{minutes}:{rest:02}"
