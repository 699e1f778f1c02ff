"""What quantisation changed against the float network on the same images, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from vcompress.bench.bundle.history import Entry
from vcompress.bench.config import from_mapping
from vcompress.bench.errors import UserError
from vcompress.bench.tasks.task import ScoreChange

AGAINST_FLOAT = "against_float"
"""Where the details of an entry keep it."""


def text_of(change: ScoreChange) -> str:
    """The paired difference with its interval, and the classes that lost most."""
    from vcompress.bench.reports.terminal import change_line

    return change_line(change)


def float_lines(history: Iterable[Entry]) -> list[str]:
    """A line for each stage that was held against float."""
    found = ((entry, entry.details.get(AGAINST_FLOAT)) for entry in history)
    lines = []
    for entry, record in found:
        if not isinstance(record, Mapping):
            continue
        try:
            change = from_mapping(ScoreChange, record, AGAINST_FLOAT)
            # Counts and values differ by their type, which a field of numbers does not keep.
            change = replace(change, lost=tuple(tuple(part) for part in record.get("lost", ())))
            lines.append(f"{entry.stage}, against float: {text_of(change)}")
        except UserError:  # of another version, or somebody's own
            continue
    return lines
