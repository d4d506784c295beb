"""The command line. A verb imports what it needs when it runs, so that --help is instant."""

from __future__ import annotations

import contextlib
import errno
import io
import signal
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import NoReturn

from scangolf.cli import data, train, presets, artifact, audit, experiments, bench  # isort: skip
from scangolf.cli.app import app
from scangolf.console import one_line
from scangolf.errors import Stopped, UserError
from scangolf.train.distributed import rank

__all__ = ["artifact", "audit", "bench", "data", "experiments", "main", "presets", "train"]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one verb. Exits with 2 for the user's mistakes and for files that cannot be read or
    written (a full disk), with 128 + its number after a signal. Of several processes that make a
    run, only the first one speaks."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A text may have letters that the terminal has not.
        sys.stdout.reconfigure(errors="replace")
    try:
        _parse_and_run(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        _refuse(str(error))
    except Stopped as stopped:
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # our reader has left, as `| head` does
        sys.stderr.close()
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        advice = "; free some space (a run goes on with --resume)" * (error.errno == errno.ENOSPC)
        _refuse(f"{where}{error.strerror or error}{advice}")


def _refuse(line: str) -> NoReturn:
    if rank() == 0:
        print(f"scangolf: {line}", file=sys.stderr)
    sys.exit(2)


def _parse_and_run(args: Sequence[str]) -> None:
    """Parses with tyro, whose boxed complaint becomes one line, and runs the verb."""
    if [*args] == ["--version"]:
        print(metadata.version("scangolf"))
        return
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            verb = app.cli(prog="scangolf", args=args or ["--help"])
    except SystemExit as error:
        if error.code in (0, None):
            raise
        raise UserError(one_line(complaint.getvalue())) from error
    verb()
