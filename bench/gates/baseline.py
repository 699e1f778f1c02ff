"""Compares a measurement with a saved one, if both were taken under the same conditions."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import stats
from ..config import plain
from ..errors import UserError
from ..reports.json import score_from
from ..reports.result import SCHEMA_VERSION, Against, ModelResult
from ..tasks import load
from ..tasks.task import ScoreChange
from ..timing.environment import Environment

# Two runs at different times differ by more than either's interval says: the clock, the
# temperature, the neighbours and the memory's layout have moved in between. An effect below this
# is not reported against a saved result; give both files for a sharper verdict.
BETWEEN_RUNS = 0.05


@dataclass(frozen=True)
class Saved:
    """What is needed of a saved result: its last model."""

    path: Path
    name: str
    environment: dict[str, Any]
    runtime: dict[str, Any]
    shapes: dict[str, Any]
    samples_ns: np.ndarray
    accuracy: dict[str, Any] | None


def read(path: Path) -> Saved:
    """Raises `UserError` for a file that vbench did not write."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.get("schema_version") != SCHEMA_VERSION:
            raise UserError(
                f"--baseline {path}: schema_version is {data.get('schema_version')!r}, expected "
                f"{SCHEMA_VERSION}. Measure the baseline again with this version."
            )
        model = data["models"][-1]
        samples = np.asarray(model["samples_ns"], dtype=np.float64)
        saved = Saved(
            path, str(model["artefact"]["name"]), dict(data["environment"]),
            dict(model["runtime"]), dict(model["workload"]["shapes"]), samples,
            dict(model["accuracy"]) if model["accuracy"] else None,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"--baseline {path}: cannot be read ({error.strerror}).") from None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"--baseline {path}: not a result of vbench ({type(error).__name__}: {error}). Give a "
            "file written with --json."
        ) from None
    if samples.ndim != 1 or len(samples) < 2 or not (samples > 0).all():
        raise UserError(f"--baseline {path}: its samples_ns are not times. Measure it again.")
    return saved


def differing(saved: Saved, model: ModelResult, environment: Environment) -> list[str]:
    """The fields that differ and forbid a comparison of latencies, as sentences."""
    now: dict[str, Any] = {f"environment.{k}": v for k, v in environment.comparable().items()}
    then: dict[str, Any] = {
        f"environment.{k}": saved.environment.get(k) for k in environment.comparable()
    }
    if isinstance(then["environment.gpus"], list):
        kept = ("name", "driver", "power_limit_w")
        then["environment.gpus"] = [
            {k: g.get(k) for k in kept} for g in then["environment.gpus"] if isinstance(g, dict)
        ]
    facts = model.measurement.facts
    for field in ("runtime", "version", "device", "provider", "options", "includes"):
        now[f"runtime.{field}"] = getattr(facts, field)
        then[f"runtime.{field}"] = saved.runtime.get(field)
    now["workload.shapes"], then["workload.shapes"] = model.measurement.shapes, saved.shapes
    return [
        f"{field} was {then[field]!r} and is {value!r}"
        for field, value in plain(now).items()
        if then[field] != value
    ]


def against(saved: Saved, model: ModelResult, environment: Environment, margin: float) -> Against:
    """The latency now over the saved one. Raises `UserError` that names what differs."""
    found = differing(saved, model, environment)
    if found:
        raise UserError(
            f"--baseline {saved.path} was taken under other conditions: {'; '.join(found)}. "
            "Measure the baseline again here, or give both models' files to compare them."
        )
    a = stats.quantile_interval(saved.samples_ns / 1e6)
    ratio = ratio_of(a, model.measurement.median)
    return Against(
        saved.name, saved.path, a, ratio, BETWEEN_RUNS,
        stats.verdict(ratio, 0.0, max(margin, BETWEEN_RUNS)),
    )  # fmt: skip


def ratio_of(a: stats.Interval, b: stats.Interval) -> stats.Interval:
    """Ratio B/A of two medians from runs of their own; the intervals add up in quadrature."""
    low = math.hypot(math.log(b.value / b.low), math.log(a.high / a.value))
    high = math.hypot(math.log(b.high / b.value), math.log(a.value / a.low))
    value = b.value / a.value
    return stats.Interval(
        value, value * math.exp(-low), value * math.exp(high), "two runs, not interleaved",
        min(a.confidence, b.confidence),
    )  # fmt: skip


def change(saved: Saved, model: ModelResult) -> ScoreChange | None:
    """What the accuracy lost against the saved one, where both were scored on the same images.

    Raises:
        UserError: the saved one is damaged, or of another task.
    """
    if saved.accuracy is None or model.accuracy is None:
        return None
    try:
        then = score_from(saved.accuracy)
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"--baseline {saved.path}: its accuracy is damaged ({error}).") from None
    if then.task != model.accuracy.task:
        raise UserError(
            f"--baseline {saved.path}: its task is {then.task}, the model's {model.accuracy.task}. "
            "Give a baseline of the same task."
        )
    return load(then.task).compare(then, model.accuracy)
