"""The command `rit`: one file a verb; nothing is imported before it is needed."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Runs the command line; a user's mistake is one sentence and exit status 2, Ctrl-C is 130."""
    from ritornello.cli.app import app
    from ritornello.errors import RitornelloError

    try:
        app()
    except RitornelloError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except OSError as error:
        _fail(f"{error.filename or 'file'}: {error.strerror or error}", 2)


def _fail(message: str, status: int) -> None:
    print(f"rit: {message}", file=sys.stderr)
    raise SystemExit(status)
