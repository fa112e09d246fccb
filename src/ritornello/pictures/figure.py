"""Figures and the files that they go to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ritornello.data.text import replacing
from ritornello.errors import ArgumentError, nearest

KINDS = ("png", "svg", "pdf")


def new_figure(width: float, height: float) -> Any:
    """An empty figure, in inches.

    Raises:
        ArgumentError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ArgumentError("Pictures need matplotlib: pip install 'ritornello[pictures]'.") from None
    return Figure(figsize=(width, height), layout="tight")


def save(figure: Any, path: str | Path) -> None:
    """Writes a figure; the file's ending says how.

    Raises:
        ArgumentError: another ending than png, svg or pdf, or a folder that is not there.
    """
    kind = check_place(path)
    with replacing(Path(path)) as file:
        figure.savefig(file, format=kind, dpi=150)


def check_place(path: str | Path) -> str:
    """The kind of picture that goes to this path.

    Raises:
        ArgumentError: as `save`.
    """
    path = Path(path)
    kind = path.suffix.removeprefix(".").lower()
    if kind not in KINDS:
        raise ArgumentError(f"{str(path)!r} does not end in a kind of picture: {nearest(kind, KINDS)}.")
    if not path.parent.is_dir():
        raise ArgumentError(f"There is no folder {path.parent} to put {path.name} in.")
    return kind
