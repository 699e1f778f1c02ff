"""A result as JSON, as `schema.json` beside this file describes it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import stats
from ..bundle.output import write_text
from ..config import plain
from ..tasks.classification import from_schema_1
from ..tasks.task import Part, Score
from ..timing import noise
from ..timing.compare import Blocks, Comparison
from ..timing.measure import Measurement
from .result import SCHEMA_VERSION, ModelResult, Result

EVERY_TASK = ("predictions", "labels")
"""Evidence that stands beside the values; what a task has besides is in `evidence`."""


def as_dict(result: Result) -> dict[str, Any]:
    """The whole result."""
    found = {
        "schema_version": SCHEMA_VERSION,
        "vbench": result.version,
        "when": result.when,
        "command": result.command,
        "environment": asdict(result.environment),
        "models": [_model(m) for m in result.models],
        "sweep": [_model(m) for m in result.sweep],
        "comparison": _comparison(result.comparison) if result.comparison else None,
        "accuracy_change": asdict(result.change) if result.change else None,
        "gate": [asdict(c) for c in result.checks],
        "against": asdict(result.against) if result.against else None,
        "notes": result.notes,
    }
    plained: dict[str, Any] = plain(found)
    return plained


def write(result: Result, path: Path) -> None:
    """Write the result; raises `UserError` where the file cannot be written."""
    text = json.dumps(as_dict(result), allow_nan=False, separators=(",", ":"))
    write_text(path, text + "\n")


def _model(m: ModelResult) -> dict[str, Any]:
    found = {
        "artefact": asdict(m.artefact) | {"precision": m.artefact.precision},
        "runtime": asdict(m.measurement.facts),
        "workload": {
            "shapes": m.measurement.shapes,
            "batch": m.measurement.batch,
            "inputs_from": m.measurement.inputs_from,
            "ring": m.measurement.ring,
        },
        "load_ms": m.measurement.load_ms,
        "first_run_ms": m.measurement.first_run_ms,
        "cold_start": asdict(m.cold_start) if m.cold_start else None,
        "warmup": asdict(m.measurement.warmup),
        "latency_ms": latency(m.measurement),
        "device_time_ms": _device(m.measurement),
        "samples_ns": m.measurement.samples_ns,
        "starts_ns": m.measurement.starts_ns,
        "blocks": m.measurement.blocks,
        "processes": m.measurement.processes,
        "stopped": m.measurement.stopped,
        "harness_ns": m.harness_ns,
        "throughput": asdict(m.throughput) if m.throughput else None,
        "open_loop": asdict(m.open_loop) if m.open_loop else None,
        "noise": {
            **asdict(m.disturbance),
            "robust_variation": stats.robust_variation(m.measurement.samples_ns),
            "drift": stats.slope_share(m.measurement.samples_ns),
            "lag1_correlation": m.measurement.lag1,
            "outliers": noise.outliers(m.measurement),
            "two_modes": stats.two_modes(m.measurement.samples_ns),
            "warnings": m.warnings,
        },
        "accuracy": _score(m.accuracy) if m.accuracy else None,
        "profile": [asdict(n) for n in m.profile],
        "nonfinite_outputs": m.measurement.nonfinite,
    }
    return found


def _score(s: Score) -> dict[str, Any]:
    """What the task measured; `facts` stand there by their own names."""
    more = {name: _kept(rows) for name, rows in s.evidence.items() if name not in EVERY_TASK}
    return {
        "task": s.task, "metric": s.metric.name, "n": s.n, "nonfinite": s.nonfinite,
        "source": s.source, "images_sha256": s.images_sha256,
        "values": {name: asdict(x) for name, x in s.values.items()},
        "parts": [asdict(part) for part in s.parts], **s.facts,
        **{name: s.evidence[name] for name in EVERY_TASK}, **({"evidence": more} if more else {}),
    }  # fmt: skip


def _kept(rows: NDArray[Any]) -> Any:
    """Rows of evidence; bytes as the text that `_rows` reads."""
    return base64.b64encode(rows.tobytes()).decode() if rows.dtype == np.uint8 else rows


def _rows(saved: list[Any] | str) -> NDArray[Any]:
    if not isinstance(saved, str):
        return np.asarray(saved)
    return np.frombuffer(base64.b64decode(saved, validate=True), np.uint8)


def score_from(saved: Mapping[str, Any]) -> Score:
    """A score from what `as_dict` wrote of it, now or before there were several tasks.

    Raises:
        KeyError, TypeError, ValueError: it is damaged.
    """
    if "values" not in saved:
        return from_schema_1(saved)
    evidence = {name: saved[name] for name in EVERY_TASK} | dict(saved.get("evidence", {}))
    nan = float("nan")  # JSON has null for it
    parts: list[dict[str, Any]] = [
        {k: nan if v is None else v for k, v in part.items()} for part in saved["parts"]
    ]
    return Score(
        saved["task"], int(saved["n"]),
        {str(name): stats.Interval(**x) for name, x in saved["values"].items()},
        tuple(Part(**part) for part in parts),
        {name: _rows(rows) for name, rows in evidence.items()},
        int(saved["nonfinite"]), str(saved["source"]),
        images_sha256=str(saved.get("images_sha256", "")),
    )  # fmt: skip


def latency(m: Measurement) -> dict[str, Any]:
    """Percentiles with intervals; null where the samples do not support one."""
    found: dict[str, Any] = {"n": len(m.samples_ns), "includes": m.facts.includes}
    found["median"] = asdict(m.median)
    for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)):
        interval = m.latency(q)
        found[name] = asdict(interval) if interval else None
    found["min"] = int(m.samples_ns.min()) / 1e6
    found["mean"] = float(m.samples_ns.mean()) / 1e6
    return found


def _device(m: Measurement) -> dict[str, Any] | None:
    if m.device_ns is None or not len(m.device_ns):
        return None
    return {"p50": asdict(stats.quantile_interval(m.device_ns / 1e6)), "samples_ns": m.device_ns}


def _comparison(c: Comparison) -> dict[str, Any]:
    return {
        "verdict": c.verdict,
        "ratio": asdict(c.ratio),
        "ratio_99": asdict(c.ratio_99),
        "margin": c.margin,
        "floor": c.floor,
        "floor_ratio": asdict(c.floor_ratio),
        "seconds": c.seconds,
        "pairs": 2 * len(c.blocks.first),
        "blocks": _blocks(c.blocks),
        "floor_blocks": _blocks(c.floor_blocks),
    }


def _blocks(b: Blocks) -> dict[str, Any]:
    return {"first_median_ns": b.first, "second_median_ns": b.second, "ratios": b.ratios()}
