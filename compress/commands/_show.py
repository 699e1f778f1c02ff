"""Shows what a command has made: the table, and where the bundle is."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def show(bundle: Any, report: Path | None = None) -> None:
    """The table at the end of every command, in the main process alone."""
    from ..reporting.terminal import print_history
    from ..training.processes import process_state

    if process_state().is_main_process:
        print_history(bundle)
        print(f"report: {report or bundle.path / 'report.html'}")
