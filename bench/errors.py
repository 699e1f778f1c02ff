"""Errors that a user can mend: one message, an exit status, no traceback.

Exit statuses: 0 holds, 1 a gate failed, 2 usage or bad input, 3 inconclusive,
4 the environment cannot do what was asked.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """Bad input. The message says what was got, what was expected and what to do next."""

    status = 2


class EnvironmentLacks(UserError):
    """The machine cannot do what was asked: a missing package, device or driver."""

    status = 4


def to_install(extra: str) -> str:
    """The command that installs an extra of this package, which is in no registry: it is installed
    from its source."""
    source = Path(__file__).resolve().parents[1]
    if (source / "pyproject.toml").is_file():
        return f"pip install -e '{source}[{extra}]'"
    return f"pip install 'SOURCE[{extra}]', where SOURCE is the folder of vcompress's source"


def reader_gone() -> int:
    """The status of a command whose reader went away (`| head`): 141, the shell's own for SIGPIPE.

    Python flushes the output once more when it ends; it goes nowhere then, without a complaint.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint such as `` Did you mean 'r18'?`` or an empty string."""
    from difflib import get_close_matches

    close = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
