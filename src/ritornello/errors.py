"""One family of errors: each is one sentence that says what came, what was expected, and what to do. And warnings."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable
from functools import lru_cache

_log = logging.getLogger("ritornello")


class RitornelloError(Exception):
    """A user's mistake, told in one sentence. The command line prints it and exits with status 2."""


class ArgumentError(RitornelloError, ValueError):
    """An argument, option or configuration value that does not fit."""


class CellError(RitornelloError, TypeError):
    """A cell that does not keep its contract: wrong state fields or shapes, or a structure it cannot run over."""


class DataError(RitornelloError, ValueError):
    """A file or text that cannot be used."""


class RunError(RitornelloError, RuntimeError):
    """A run folder that is missing, in the way, damaged, or written by another version."""


def nearest(name: str, legal: Iterable[str]) -> str:
    """The legal names, the likely one first: the tail of an "unknown name" message.

    >>> nearest("lsmt", ["gru", "lstm", "elman"])
    'did you mean lstm? Known: elman, gru, lstm'
    """
    known = sorted(legal)
    close = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    guess = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{guess}Known: {', '.join(known)}"


@lru_cache(maxsize=256)
def tell(what: str) -> None:
    """Logs a warning, once in a process."""
    _log.warning("%s", what)
