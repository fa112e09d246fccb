"""The log of a run: metrics.jsonl, and the same as TensorBoard events."""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from ritornello.training.run import Run


class Log:
    """Writes an object an evaluation, in two forms.

    Args:
        run: the run.
        size: bytes of metrics.jsonl that count; what a killed process wrote after its last checkpoint is cut off, and
            the events are written anew from what is left.
    """

    def __init__(self, run: Run, size: int = 0) -> None:
        self._events_path = run.path / "tensorboard"
        shutil.rmtree(self._events_path, ignore_errors=True)
        run.metrics_file.touch()
        os.truncate(run.metrics_file, run.metrics_file.read_bytes()[:size].rfind(b"\n") + 1)
        rows = run.metrics()
        self._lines = open(run.metrics_file, "ab")  # noqa: SIM115, closed by close()
        self._events = SummaryWriter(str(self._events_path))
        for row in rows:
            self._write_events(row)

    def write(self, row: dict[str, Any]) -> None:
        """Adds an evaluation."""
        self._lines.write(json.dumps(row).encode() + b"\n")
        self._lines.flush()
        self._write_events(row)

    @property
    def size(self) -> int:
        """Bytes of metrics.jsonl."""
        return self._lines.tell()

    def close(self) -> None:
        self._lines.close()
        self._events.close()

    def _write_events(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self._events.add_scalar(name, value, row["step"])
