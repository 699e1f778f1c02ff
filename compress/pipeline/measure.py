"""Accuracy, latency and golden outputs of a file, in the runtime that it was quantised for."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vcompress.bench.bundle import GOLDEN, MODEL
from vcompress.bench.bundle.history import Latency, TestScore
from vcompress.bench.data.dataset import batches
from vcompress.bench.errors import EnvironmentLacks, UserError
from vcompress.bench.runtimes import open_session
from vcompress.bench.runtimes.session import Session
from vcompress.bench.stats import percentile_interval
from vcompress.bench.tasks.scoring import images_at_once, score_split
from vcompress.bench.tasks.scoring import outputs as run_batch
from vcompress.bench.tasks.task import Score
from vcompress.bench.timing import measure
from vcompress.bench.timing.environment import preflight
from vcompress.bench.timing.inputs import from_images
from vcompress.bench.working import working
from vcompress.export import parity

from .. import quantization
from ..data.loader import Data
from ..quantization.targets import Target

log = logging.getLogger(__name__)

LATENCY_SECONDS = 3.0
RESAMPLES = 200
"""Number of resamples of the held-out images, for the interval of a user's own metric."""


@dataclass(frozen=True)
class Runtime:
    """Where a file is measured."""

    name: str
    """A name in `bench/runtimes`."""
    device: str
    ships_in: str | None
    """The runtime that the network was quantised for; None of a float network."""


ONNX_RUNTIME = Runtime("onnxruntime", "cpu", None)


def runtime_of(model: nn.Module, file: Path) -> Runtime:
    """Where the file of `model` is measured: in its target's runtime, else in ONNX Runtime.

    Where the target's runtime or device is not here, the log says so and why.
    """
    target = quantization.target_of(model)
    runtime, why = runtime_for(target, file)
    if target is not None and why:
        log.warning(
            "measured in ONNX Runtime on the CPU and not in %s, which the network is quantised "
            "for: %s", target.runtime, why,
        )  # fmt: skip
    return runtime


def runtime_for(target: Target | None, file: Path) -> tuple[Runtime, str]:
    """Where a file for `target` is measured; and why not in the target's runtime, else nothing."""
    if target is None:
        return ONNX_RUNTIME, ""
    why = target.unmeasured
    if not why:
        try:
            open_session(file, runtime=target.runtime, device=target.device).close()
            return Runtime(target.runtime, target.device, target.runtime), ""
        except EnvironmentLacks as error:
            why = str(error)
    return Runtime(ONNX_RUNTIME.name, ONNX_RUNTIME.device, target.runtime), why


OwnMetric = Callable[[Tensor, Tensor], float]
"""A user's metric, of outputs `[N, ...] float32` and targets `[N, ...]` on the CPU; higher is
better."""


def score(file: Path, data: Data, runtime: Runtime = ONNX_RUNTIME) -> TestScore:
    """What the history keeps of `scored`."""
    return scored(file, data, runtime).record(runtime.name)


def scored(file: Path, data: Data, runtime: Runtime = ONNX_RUNTIME) -> Score:
    """Accuracy of the file on the held-out split, by the task's metrics."""
    with (
        working(f"measuring accuracy in {runtime.name}"),
        open_session(file, runtime=runtime.name, device=runtime.device) as session,
    ):
        return score_split(session, data.dataset, "test", data.preprocess)


def own_score(file: Path, data: Data, own: OwnMetric, runtime: Runtime = ONNX_RUNTIME) -> TestScore:
    """The user's `own` metric of the file on the held-out split."""
    with open_session(file, runtime=runtime.name, device=runtime.device) as session:
        return _own_score(session, data, own, runtime.name)


def _own_score(session: Session, data: Data, own: OwnMetric, runtime: str) -> TestScore:
    """With a percentile interval over resampled images."""
    at_once = images_at_once(session)
    found = [
        (next(iter(run_batch(session, images).values())), targets)
        for images, targets in batches(data.dataset, "test", data.preprocess, at_once)
    ]
    given, wanted = (torch.from_numpy(np.concatenate(part)) for part in zip(*found, strict=True))
    value = own(given, wanted)
    if not math.isfinite(_number(value)):
        raise UserError(
            f"metric: it gives {value!s:.60} for outputs {list(given.shape)} and targets "
            f"{list(wanted.shape)}; expected a finite number."
        )
    random, n = np.random.default_rng(0), len(wanted)
    drawn = []
    for _ in range(RESAMPLES):
        rows = torch.from_numpy(random.integers(0, n, n))
        with contextlib.suppress(ValueError):  # a class that was not drawn, say
            drawn.append(_number(own(given[rows], wanted[rows])))
    span = percentile_interval(_number(value), np.array(drawn))
    name = getattr(own, "__name__", type(own).__name__)
    return TestScore(
        name if name.isidentifier() else "metric", span.value,
        (span.low, span.high) if math.isfinite(span.low) else None, n, runtime=runtime,
    )  # fmt: skip


def _number(value: Any) -> float:
    """NaN where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return math.nan


def latency(
    file: Path, images: Tensor, runtime: Runtime = ONNX_RUNTIME, threads: int = 1,
    seconds: float | None = None,
) -> Latency:  # fmt: skip
    """Median latency of one image, end to end; `images` `[N, C, H, W]` take turns.

    Args:
        seconds: time that is spent on it; `LATENCY_SECONDS` by default.
    """
    where = {"runtime": runtime.name, "device": runtime.device}
    with open_session(file, **where, threads=threads) as session:
        feed = from_images(session.inputs[0], images.numpy(), 1, "held-out images")
        found = measure.measure(session, feed, measure.Effort.quick(seconds or LATENCY_SECONDS))
    return latency_of(found, runtime, threads)


def latency_of(found: measure.Measurement, runtime: Runtime, threads: int) -> Latency:
    """What the history keeps of a measurement of one image at a time."""
    low, high = found.interval_ms
    return Latency(
        median_ms=found.median_ms,
        low_ms=low,
        high_ms=high,
        batch=1,
        threads=threads,
        steady=found.steady,
        provider=found.facts.provider,
        cpu=preflight().cpu_model,
        runtime=runtime.name,
        ships_in=runtime.ships_in,
    )


def _write_golden(folder: Path, inputs: Any, runs: bool) -> None:
    """Inputs with the outputs of ONNX Runtime: a device can check itself against them.

    It is ONNX Runtime for every target. The parity check has held the file against torch there,
    tensor by tensor where needed, every installation has it, and the limits of `verify` are as
    wide for one int8 runtime as for another. So outputs of the target's runtime would say no more,
    and they would depend on what was installed when the bundle was written. What ONNX Runtime
    cannot run, the reference evaluator of ONNX computes.
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
