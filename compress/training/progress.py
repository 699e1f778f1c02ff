"""Progress of long work: a live bar in a terminal, one plain line an epoch elsewhere.

Nothing is shown unless the command line has switched the logger `vcompress` to INFO.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger(__name__)


@dataclass
class EpochProgress:
    """Told about every step and epoch by the training loop."""

    name: str
    epochs: int
    steps: int
    done_before: int = 0
    bar: Any = None
    task: Any = None
    started: float = field(default_factory=time.monotonic)

    def step(self, epoch: int, step: int, loss: float) -> None:
        """`epoch` and `step` count from 0."""
        if self.bar is not None:
            self.bar.update(
                self.task,
                completed=epoch * self.steps + step + 1,
                description=f"{self.name}  epoch {epoch + 1}/{self.epochs}  loss {loss:.3f}",
            )

    def epoch(
        self, epoch: int, loss: float, score: str, lr: float,
        parts: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        """`epoch` counts from 0; `score` is the validation images' with its unit; the loss may be
        the sum of named parts."""
        named = ", ".join(f"{name} {value:.3g}" for name, value in (parts or {}).items())
        named = f" ({named})" if named else ""
        spent = time.monotonic() - self.started
        left = spent / (epoch + 1 - self.done_before) * (self.epochs - epoch - 1)
        line = (
            f"{self.name}  epoch {epoch + 1}/{self.epochs}  loss {loss:.4f}{named}  "
            f"val {score}  lr {lr:.2e}  {spent:.0f} s, {left:.0f} s left"
        )
        if self.bar is not None:
            self.bar.console.print(line, highlight=False)
        else:
            log.info(line)


@contextmanager
def epoch_progress(name: str, epochs: int, steps: int, done: int = 0) -> Iterator[EpochProgress]:
    """Show `name`'s epochs; `done` of them were finished before."""
    progress = EpochProgress(name, epochs, steps, done_before=done)
    if not (log.isEnabledFor(logging.INFO) and sys.stderr.isatty()):
        yield progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        progress.bar = bar
        progress.task = bar.add_task(name, total=epochs * steps, completed=done * steps)
        yield progress
