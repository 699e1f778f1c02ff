"""Times an int8 file against the float one, so that it is never slower in silence."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import Tensor

from vcompress.bench.bundle.history import Latency
from vcompress.bench.runtimes import open_session
from vcompress.bench.timing.compare import CompareEffort, compare
from vcompress.bench.timing.inputs import from_images
from vcompress.bench.timing.measure import Effort
from vcompress.export.operator_times import costs_more

from ..reporting.speed import Speed, text_of
from . import measure
from .measure import Runtime

log = logging.getLogger(__name__)


def timed_against(
    file: Path, base: Path, images: Tensor, runtime: Runtime, threads: int
) -> tuple[Latency, Speed]:
    """The latency of `file`, and its speed against the float file `base`, from one run of both in
    turn; `images` [N, C, H, W] take turns. The log says it in a sentence."""
    where = {"runtime": runtime.name, "device": runtime.device}
    seconds = measure.LATENCY_SECONDS
    effort = CompareEffort(seconds=seconds, floor_seconds=seconds / 3, warmup=Effort.quick(seconds))
    with (
        open_session(base, **where, threads=threads) as a,
        open_session(file, **where, threads=threads) as b,
        open_session(base, **where, threads=threads) as again,
    ):
        feeds = [from_images(s.inputs[0], images.numpy(), 1, "held-out images") for s in (a, b)]
        found = compare(a, feeds[0], b, feeds[1], again, effort)
        blamed: dict[str, float] = {}
        if found.verdict != "FASTER" and runtime.name == "onnxruntime":
            blamed = costs_more(base, file, feeds[1].ring[0], threads=threads)
    speed = Speed(
        faster=1 / found.ratio.value,
        faster_low=1 / found.ratio.high,
        faster_high=1 / found.ratio.low,
        float_ms=found.a.median_ms,
        int8_ms=found.b.median_ms,
        verdict=found.verdict,
        runtime=runtime.name,
        threads=threads,
        costs_more=blamed,
    )
    say = log.info if speed.verdict == "FASTER" else log.warning
    say("%s", text_of(speed))
    return measure.latency_of(found.b, runtime, threads), speed
