"""Accuracy, latency and golden outputs of a file in the runtime that ships."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vcompress.bench.bundle import GOLDEN, MODEL
from vcompress.bench.errors import UserError
from vcompress.bench.runtimes import open_session
from vcompress.bench.tasks.scoring import score_split
from vcompress.bench.timing import measure
from vcompress.bench.timing.environment import preflight
from vcompress.bench.timing.inputs import from_images
from vcompress.export import parity

from ..data.loader import Data

LATENCY_SECONDS = 3.0


def score(file: Path, data: Data) -> dict[str, Any]:
    """Accuracy of the file on the held-out split, in the runtime."""
    with open_session(file) as session:
        return score_split(session, data.dataset, "test", data.preprocess).record()


def latency(file: Path, images: Tensor) -> dict[str, Any]:
    """Median latency of one image, end to end, one thread; `images` `[N, C, H, W]` take turns."""
    with open_session(file, threads=1) as session:
        feed = from_images(session.inputs[0], images.numpy(), 1, "held-out images")
        found = measure.measure(session, feed, measure.Budget.quick(LATENCY_SECONDS))
    low, high = found.interval_ms
    return {
        "median_ms": found.median_ms,
        "low_ms": low,
        "high_ms": high,
        "batch": 1,
        "threads": 1,
        "steady": found.steady,
        "provider": found.facts.provider,
        "cpu": preflight().cpu_model,
    }


def _write_golden(folder: Path, inputs: Any, runs: bool) -> None:
    """Inputs with the runtime's outputs: a device can check itself against them.

    What the runtime cannot run, the reference evaluator of ONNX computes.
    """
    if runs:
        with open_session(folder / MODEL) as session:
            outputs = session.run({"input": inputs})
    else:
        outputs = {"logits": parity.run_reference(folder / MODEL, inputs)[0]}
    arrays: Mapping[str, Any] = {"input": inputs, **{f"output.{k}": v for k, v in outputs.items()}}
    if strings := [name for name, array in arrays.items() if np.asarray(array).dtype.hasobject]:
        raise UserError(f"{MODEL} makes something else than numbers: {', '.join(strings)}.")
    np.savez(folder / GOLDEN, **arrays)  # numpy before 2.2 takes `allow_pickle` for an array
