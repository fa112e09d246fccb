"""Text that needs no download."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ritornello.errors import ArgumentError, DataError, nearest


def help_topics() -> str:
    """English prose that every CPython carries: what `help("LAMBDAS")` and its like print, in the keys' order.

    About half a million characters of 100 kinds; it differs a little from one Python version to the next.

    Raises:
        DataError: this Python was packaged without them.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError(
            "this Python came without its help topics (module pydoc_data); use a text of your own"
        ) from None
    return "\n\n".join(topics[key] for key in sorted(topics))


EMBEDDED: dict[str, Callable[[], str]] = {"help-topics": help_topics}


def write(name: str, path: str | Path) -> Path:
    """Writes the text called `name` in `EMBEDDED` as the UTF-8 file `path`, and returns that path.

    Raises:
        ArgumentError: there is no text of that name.
    """
    if name not in EMBEDDED:
        raise ArgumentError(f"there is no text called {name!r}: {nearest(name, EMBEDDED)}")
    path = Path(path)
    path.write_bytes(EMBEDDED[name]().encode())
    return path
