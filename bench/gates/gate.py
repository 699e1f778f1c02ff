"""Limits that a model must hold before it ships, decided on the bounds of the interval."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ..config import from_mapping, read_toml
from ..errors import UserError
from ..reports.result import Check, ModelResult, Result
from . import limits
from .limits import CHANGES, METRICS, Budget


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
    min_miou: float | None = None
    """Mean intersection over union, from 0 to 1."""
    max_miou_drop: float | None = None
    """Against the first model or the baseline, from 0 to 1."""
    max_negative_flips: float | None = None
    """Share of the images, or of the pixels, that were right and are wrong."""
    max_slowdown: float | None = None
    """Ratio of the medians against the first model or the baseline: 1.05 allows 5 % slower."""
    limits: tuple[str, ...] = ()
    """The same and more as texts, such as "latency_ms<=4"; `limits.parse` explains them."""

    def __post_init__(self) -> None:
        for name, budget in self.budgets():
            if budget.kind in ("macs", "params", "channels"):
                raise UserError(
                    f"{name}: vbench measures files and counts no {budget.kind}. Hold "
                    "latency_ms, size_mb or memory_mb, or give it to vcompress prune --budget."
                )

    def budgets(self) -> Iterator[tuple[str, Budget]]:
        """Every limit that is given, with the name to report it by."""
        for key, kind in _KINDS.items():
            value = getattr(self, key)
            if value is not None:
                try:
                    yield key, Budget(kind, value, at_least=key.startswith("min_"))
                except UserError as error:
                    raise UserError(f"{key} = {value}: {error}") from None
        for text in self.limits:
            budget = limits.parse(text)
            yield budget.text, budget


_KINDS = {
    "max_p50_ms": "latency_ms",
    "max_p99_ms": "p99_ms",
    "max_size_mb": "size_mb",
    "max_memory_mb": "memory_mb",
    "min_top1": "top1",
    "max_top1_drop": "top1_drop",
    "min_miou": "mIoU",
    "max_miou_drop": "mIoU_drop",
    "max_negative_flips": "negative_flips",
    "max_slowdown": "slowdown",
}


def read(path: Path) -> Gate:
    """Raises `UserError` for a file that is no TOML, an unknown key, or no key at all."""
    try:
        data = read_toml(path)
    except OSError as error:
        raise UserError(f"--gate {path}: cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise UserError(f"--gate {path}: no valid TOML ({error}).") from None
    gate = from_mapping(Gate, data, str(path))
    if not any(True for _ in gate.budgets()):
        known = ", ".join(f.name for f in fields(gate))
        raise UserError(f"--gate {path}: it asks for nothing. Give one of {known}.")
    return gate


def asked(path: Path | None, more: tuple[str, ...]) -> Gate | None:
    """A gate from a file, from further limits such as "latency_ms<=4", or from both."""
    gate = read(path) if path else Gate()
    gate = replace(gate, limits=(*gate.limits, *more))
    return gate if path or more else None


def check(gate: Gate, result: Result) -> tuple[Check, ...]:
    """Hold the last model against the gate.

    Raises `UserError` where something asked for was not measured: a guard that was not evaluated
    must never pass.
    """
    return tuple(_check(name, budget, result) for name, budget in gate.budgets())


def _check(name: str, budget: Budget, result: Result) -> Check:
    found = _measured(name, budget, result)
    if found is None:
        runs = len(result.models[-1].measurement.samples_ns)
        return Check(
            name, budget.value, float("nan"), float("nan"), "inconclusive",
            f"{runs} runs do not carry a p99 (662 do); measure longer with --seconds",
        )  # fmt: skip
    value, low, high = found
    if not _carries(budget, result):
        runs = len(result.models[-1].measurement.samples_ns)
        return Check(
            name, budget.value, value, value, "inconclusive",
            f"{value:.4g} {budget.unit or ''} of {runs} runs, too few for an interval; measure "
            "longer with --seconds",
        )  # fmt: skip
    return Check(
        name, budget.value, value, budget.bound(low, high), budget.outcome(low, high),
        _say(budget, value, low, high),
    )  # fmt: skip


def _carries(budget: Budget, result: Result) -> bool:
    """Whether there were runs enough for an interval of this limit's quantity."""
    if budget.kind in ("slowdown", "speedup") or (budget.kind == "latency_ms" and budget.relative):
        versus = result.comparison or result.against
        return versus is None or versus.ratio.carries
    return budget.kind != "latency_ms" or result.models[-1].measurement.median.carries


_Found = tuple[float, float, float]
"""An estimate and the two ends of its interval."""


def _measured(name: str, budget: Budget, result: Result) -> _Found | None:
    """The quantity of a limit, in the limit's unit; None where too few runs carry it."""
    model, kind = result.models[-1], budget.kind
    if kind in ("slowdown", "speedup") or (kind == "latency_ms" and budget.relative):
        return _ratio(name, kind == "speedup", result)
    if kind == "negative_flips" or kind in CHANGES:
        return _change(name, kind, result)
    if budget.relative:
        return _share(name, budget, result)
    if kind == "latency_ms":
        m = model.measurement
        return m.median_ms, *m.interval_ms
    if kind == "p99_ms":
        tail = model.measurement.latency(0.99)
        return None if tail is None else (tail.value, tail.low, tail.high)
    if kind in METRICS:
        if model.accuracy is None:
            raise UserError(f"The gate asks for {name} and no accuracy was measured: give --data.")
        scored = model.accuracy.values.get(kind)
        if scored is None:
            raise UserError(
                f"The gate asks for {name}; a {model.accuracy.task} has "
                f"{', '.join(model.accuracy.values)}."
            )
        return scored.value, scored.low, scored.high
    amount = _amount(name, kind, model)
    return amount, amount, amount


def _amount(name: str, kind: str, model: ModelResult) -> float:
    """Size or memory, in 10^6 bytes; they have no interval."""
    if kind == "size_mb":
        return model.artefact.size_bytes / 1e6
    if model.cold_start is None:
        raise UserError(f"The gate asks for {name}; omit --no-cold-start.")
    return model.cold_start.model_memory_bytes / 1e6


def _share(name: str, budget: Budget, result: Result) -> _Found:
    """The last model's size or memory as a share of the first one's."""
    if budget.kind == "p99_ms":
        raise UserError(f"The gate asks for {name}: the tail is held in ms, such as p99_ms<=8.")
    if len(result.models) < 2:
        raise UserError(f"The gate asks for {name}, a share of another model's: give two models.")
    first, last = (_amount(name, budget.kind, model) for model in result.models)
    share = last / first
    return share, share, share


def _change(name: str, kind: str, result: Result) -> _Found:
    change = result.change
    if change is None:
        raise UserError(
            f"The gate asks for {name}, a change of the accuracy: give two models or --baseline, "
            "and --data."
        )
    flips, interval = change.negative_flips, change.negative_flips_interval
    if kind == "negative_flips":
        if flips is None or interval is None:
            raise UserError(f"The gate asks for {name}; {change.metric} has no right and wrong.")
        return flips, *interval
    if CHANGES[kind].name != change.metric:
        raise UserError(f"The gate asks for {name}; what was compared is {change.metric}.")
    low, high = change.difference_interval
    if CHANGES[kind].higher_is_better:
        return -change.difference, -high, -low
    return change.difference, low, high


def _ratio(name: str, inverse: bool, result: Result) -> _Found:
    """Latency of the last model over the first one's or the baseline's, or the inverse."""
    versus = result.comparison or result.against
    if versus is None:
        raise UserError(f"The gate asks for {name}: give two models or --baseline.")
    r = versus.ratio
    return (1 / r.value, 1 / r.high, 1 / r.low) if inverse else (r.value, r.low, r.high)


def _say(budget: Budget, value: float, low: float, high: float) -> str:
    unit = f" {budget.unit}" if budget.unit else ""
    span = "" if low == high else f" ({low:.4g} to {high:.4g})"
    word = "at least" if budget.at_least else "at most"
    return f"{value:.4g}{unit}{span}, {word} {budget.value:g}{unit}"
