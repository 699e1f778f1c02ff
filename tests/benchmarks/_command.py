"""A command of `vcompress` in this process."""

from __future__ import annotations

import contextlib
import io
import logging
import time

from vcompress.compress.cli import main as vcompress


def command(*arguments: str) -> tuple[int, str, float]:
    """Exit status, what was printed, seconds; 99 where it was a traceback."""
    started, said = time.perf_counter(), io.StringIO()
    logging.getLogger().handlers.clear()  # each command writes where it is told to
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            status = vcompress(arguments)
        except SystemExit as error:
            status = int(error.code or 0)
        except Exception as error:  # the table goes on
            status = 99
            print(f"{type(error).__name__}: {error}")
    return status, said.getvalue() or "nothing", time.perf_counter() - started
