"""How an int8 file's latency compares with the float one's, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vcompress.bench.bundle.history import Entry
from vcompress.bench.config import from_mapping
from vcompress.bench.errors import UserError

from .latency import title

SPEED = "speed"
"""Where the details of an entry keep it."""
SHOWN = 3
"""Operators to blame that are named."""


@dataclass(frozen=True)
class Speed:
    """Both files timed in turn in one process, one image at a time."""

    faster: float
    """Float time over int8 time."""
    faster_low: float
    """95 % interval, as is `faster_high`."""
    faster_high: float
    float_ms: float
    """Median."""
    int8_ms: float
    verdict: str
    """FASTER, SLOWER, EQUIVALENT or INCONCLUSIVE: int8 against float."""
    runtime: str
    threads: int
    costs_more: Mapping[str, float] = field(default_factory=dict)
    """Where int8 is not faster: operator -> milliseconds more than in the float file."""
    extra: Mapping[str, Any] = field(default_factory=dict, metadata={"rest": True})


def text_of(speed: Speed) -> str:
    """A sentence or two: how much faster, or that it is not, with what is to blame."""
    where = f"{title(speed.runtime)}, {speed.threads} thread{'s' if speed.threads > 1 else ''}"
    numbers = (
        f"{speed.faster:.2f} times as fast ({speed.faster_low:.2f} to {speed.faster_high:.2f}), "
        f"{speed.int8_ms:.3g} against {speed.float_ms:.3g} ms, interleaved in {where}"
    )
    if speed.verdict == "FASTER":
        return f"int8 is {numbers}"
    word = {"INCONCLUSIVE": "perhaps not faster than float"}.get(
        speed.verdict, "not faster than float"
    )
    blamed = list(speed.costs_more.items())[:SHOWN]
    blame = ", ".join(f"{name} (+{ms:.2g} ms)" for name, ms in blamed)
    return (
        f"int8 is {word}: {numbers}."
        + (f" It spends more on {blame}." if blame else "")
        + " Ship the float file for this machine, or leave more of the network in floating point "
        "(--keep-float)"
    )


def speed_of(entry: Entry) -> Speed | None:
    """What an entry of the history says; None where both files were not timed."""
    record = entry.details.get(SPEED)
    if not isinstance(record, Mapping):
        return None
    try:
        return from_mapping(Speed, record, SPEED)
    except UserError:  # of another version, or somebody's own
        return None


def speed_lines(history: Iterable[Entry]) -> list[str]:
    """A line for each stage whose file was timed against float, those that are not faster first."""
    found = [(entry, speed) for entry in history if (speed := speed_of(entry)) is not None]
    found.sort(key=lambda pair: pair[1].verdict == "FASTER")
    return [f"{entry.stage}: {text_of(speed)}" for entry, speed in found]
