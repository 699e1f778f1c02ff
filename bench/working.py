"""Long work says in the log that it goes on, and how far it is."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

log = logging.getLogger(__name__)

EVERY_SECONDS = 4.0
"""Longest silence."""


@dataclass
class Work:
    """How much of it is done."""

    total: int = 0
    """Number of equal parts; 0 where they are not known."""
    finished: int = 0

    def done(self, parts: int = 1) -> None:
        """So many more parts are done."""
        self.finished += parts


@contextmanager
def working(what: str, total: int = 0) -> Iterator[Work]:
    """While the block runs, a line of the log at least every `EVERY_SECONDS` seconds: `what`, the
    parts that are done, and the seconds so far.

    It comes from a thread, so that one long call is not silent either. Nothing is said of what ends
    before, and nothing at all where the log does not show INFO.
    """
    work = Work(total)
    if not log.isEnabledFor(logging.INFO):
        yield work
        return
    over, started = threading.Event(), time.monotonic()

    def say() -> None:
        while not over.wait(EVERY_SECONDS):
            part = f", {work.finished} of {work.total}" if work.total else ""
            log.info("%s%s, %.0f s so far", what, part, time.monotonic() - started)

    thread = threading.Thread(target=say, name=what, daemon=True)
    thread.start()
    try:
        yield work
    finally:
        over.set()
        thread.join()
