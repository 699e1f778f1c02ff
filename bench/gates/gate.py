"""What a model must hold before it ships, decided on the interval's bound and not on the point."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from ..config import from_mapping
from ..errors import UserError
from ..reports.result import Check, Result

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Outcome = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The file's keys; each that is given is checked on the last model named."""

    max_p50_ms: float | None = None
    max_p99_ms: float | None = None
    max_size_mb: float | None = None
    """File size in 10^6 bytes."""
    max_memory_mb: float | None = None
    """Memory that the model adds to a fresh process, in 10^6 bytes."""
    min_top1: float | None = None
    """From 0 to 1."""
    max_top1_drop: float | None = None
    """Against the first model or the baseline, from 0 to 1: 0.01 is one point."""
    max_negative_flips: float | None = None
    """Share of the images that were right and are wrong."""
    max_slowdown: float | None = None
    """Ratio of the medians against the first model or the baseline: 1.05 allows 5 % slower."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not value >= 0:
                raise UserError(f"{field.name} = {value}: it must be 0 or more.")
        for name in ("min_top1", "max_top1_drop", "max_negative_flips"):
            value = getattr(self, name)
            if value is not None and value > 1:
                raise UserError(f"{name} = {value}: a share from 0 to 1, such as {value / 100:g}.")


def read(path: Path) -> Gate:
    """Raises `UserError` for a file that is no TOML, an unknown key, or no key at all."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--gate {path}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"--gate {path}: no valid TOML ({error}).") from None
    gate = from_mapping(Gate, data, str(path))
    if all(getattr(gate, f.name) is None for f in fields(gate)):
        known = ", ".join(f.name for f in fields(gate))
        raise UserError(f"--gate {path}: it asks for nothing. Give one of {known}.")
    return gate


def check(gate: Gate, result: Result) -> tuple[Check, ...]:
    """Hold the last model against the gate.

    Raises `UserError` where something asked for was not measured: a guard that was not evaluated
    must never pass.
    """
    model = result.models[-1]
    m, found = model.measurement, []
    if gate.max_p50_ms is not None:
        found.append(_most("max_p50_ms", gate.max_p50_ms, m.median_ms, *m.interval_ms, "ms"))
    if gate.max_p99_ms is not None:
        tail = m.latency(0.99)
        if tail is None:
            found.append(_withheld("max_p99_ms", gate.max_p99_ms, len(m.samples_ns)))
        else:
            found.append(
                _most("max_p99_ms", gate.max_p99_ms, tail.value, tail.low, tail.high, "ms")
            )
    if gate.max_size_mb is not None:
        size = model.artefact.size_bytes / 1e6
        found.append(_most("max_size_mb", gate.max_size_mb, size, size, size, "MB"))
    if gate.max_memory_mb is not None:
        if model.cold_start is None:
            raise UserError("The gate asks for max_memory_mb; leave --no-cold-start away.")
        memory = model.cold_start.model_memory_bytes / 1e6
        found.append(_most("max_memory_mb", gate.max_memory_mb, memory, memory, memory, "MB"))
    if gate.min_top1 is not None:
        scored = model.accuracy.values.get("top1") if model.accuracy else None
        if scored is None:
            raise UserError("The gate asks for min_top1 and no accuracy was measured: give --data.")
        found.append(_least(gate.min_top1, scored.value, scored.low, scored.high))
    found += _against(gate, result)
    return tuple(found)


def _against(gate: Gate, result: Result) -> list[Check]:
    found = []
    if gate.max_top1_drop is not None or gate.max_negative_flips is not None:
        change = result.change
        if change is None:
            raise UserError(
                "The gate asks for a drop of accuracy: give two models or --baseline, and --data."
            )
        if gate.max_top1_drop is not None:
            if change.metric != "top1":
                raise UserError(f"The gate asks for max_top1_drop; measured was {change.metric}.")
            low, high = change.difference_interval
            found.append(
                _most("max_top1_drop", gate.max_top1_drop, -change.difference, -high, -low, "")
            )
        if gate.max_negative_flips is not None:
            flips = change.negative_flips, change.negative_flips_interval
            if flips[0] is None or flips[1] is None:
                raise UserError(
                    f"The gate asks for max_negative_flips; {change.metric} has no right and wrong."
                )
            found.append(
                _most("max_negative_flips", gate.max_negative_flips, flips[0], *flips[1], "")
            )
    if gate.max_slowdown is not None:
        versus = result.comparison or result.against
        if versus is None:
            raise UserError("The gate asks for max_slowdown: give two models or --baseline.")
        r = versus.ratio
        found.append(_most("max_slowdown", gate.max_slowdown, r.value, r.low, r.high, "times"))
    return found


def _most(name: str, limit: float, value: float, low: float, high: float, unit: str) -> Check:
    outcome: Outcome = "pass" if high <= limit else "fail" if low > limit else "inconclusive"
    return Check(name, limit, value, high, outcome, _say(value, low, high, "at most", limit, unit))


def _least(limit: float, value: float, low: float, high: float) -> Check:
    outcome: Outcome = "pass" if low >= limit else "fail" if high < limit else "inconclusive"
    return Check(
        "min_top1", limit, value, low, outcome, _say(value, low, high, "at least", limit, "")
    )


def _withheld(name: str, limit: float, n: int) -> Check:
    return Check(
        name, limit, float("nan"), float("nan"), "inconclusive",
        f"{n} runs do not carry a p99 (662 do); measure longer with --seconds",
    )  # fmt: skip


def _say(value: float, low: float, high: float, word: str, limit: float, unit: str) -> str:
    unit = f" {unit}" if unit else ""
    span = "" if low == high else f" ({low:.4g} to {high:.4g})"
    return f"{value:.4g}{unit}{span}, {word} {limit:g}{unit}"
