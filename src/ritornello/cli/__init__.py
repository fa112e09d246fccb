"""The command `rit`: one file a verb; nothing is imported before it is needed."""

from __future__ import annotations

import os
import sys
from typing import Any


def main() -> None:
    """Runs the command line; a user's mistake is one sentence and exit status 2, Ctrl-C is 130."""
    from typer import BadParameter

    from ritornello.cli.app import app
    from ritornello.errors import RitornelloError

    # Threads that wait for one another spin less before they sleep: it costs nothing on a quiet machine, and is several
    # times faster where other programs want the cores too (docs/performance.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    usage_error: Any = BadParameter.__mro__[1]  # click's, or that of the copy of click that Typer brings
    try:
        raise SystemExit(app(prog_name="rit", standalone_mode=False))
    except usage_error as error:
        _fail(error.format_message(), 2)
    except RitornelloError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except OSError as error:
        _fail(f"{error.filename or 'file'}: {error.strerror or error}", 2)


def _fail(message: str, status: int) -> None:
    if message:  # without a verb Typer has shown the help already
        print(f"rit: {message}", file=sys.stderr)
    raise SystemExit(status)
