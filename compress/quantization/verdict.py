"""Whether int8 is worth it for this network on this machine: FP32 against INT8, measured.

The rule: the 99 % interval of the speed-up lies above 1.1, and int8 loses at most `max_drop` points
of top-1 on the held-out images. Anything else is "do not quantise", or "cannot tell" where the
interval holds 1.1.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from vcompress.bench.bundle import InputSpec
from vcompress.bench.gates.limits import Budget
from vcompress.bench.runtimes import open_session
from vcompress.bench.tasks.scoring import score_split
from vcompress.bench.timing.compare import CompareEffort, compare
from vcompress.bench.timing.environment import preflight
from vcompress.bench.timing.inputs import from_images
from vcompress.export import onnx_export

from .. import quantization
from ..data.loader import Data
from ..reporting.verdict import Candidate, Verdict, Word, sentences
from .targets import Target

log = logging.getLogger(__name__)


FASTER = Budget("speedup", 1.1, at_least=True)
"""The speed-up that the interval must lie above: less is not worth a second kind of file."""
EFFORT = CompareEffort()
IMAGES = 64


def decide(
    low: float, high: float, lost_points: float, max_drop: float, unit: str = "points"
) -> tuple[Word, str]:
    """The rule of this module: a word, and why.

    Args:
        low, high: 99 % interval of the speed-up.
        lost_points: what the task's metric lost, in `unit`: points (0 to 100) of a share.
    """
    if lost_points > max_drop:
        return "do not quantise", (f"it loses {lost_points:.2f} {unit}, more than {max_drop:g}")
    faster = FASTER.outcome(low, high)
    if faster == "pass":
        return "quantise", (
            f"it is at least {low:.2f} times faster and loses {lost_points:.2f} of at most "
            f"{max_drop:g} {unit}"
        )
    if faster == "fail":
        return "do not quantise", (
            f"it is at most {high:.2f} times faster; {FASTER.value} is the least that pays"
        )
    return "cannot tell", (
        f"it is {low:.2f} to {high:.2f} times faster, and {FASTER.value} is the least that pays: "
        "measure on a quieter machine"
    )


def judge(
    model: nn.Module, quantised: nn.Module, data: Data, folder: Path, *, target: Target,
    max_drop: float, threads: int = 1,
) -> Verdict:  # fmt: skip
    """Export both networks, score both on the held-out split, time them interleaved, and decide.

    Args:
        model: the float network.
        quantised: from the stage, calibrated or trained.
        folder: for the two files; removed afterwards.

    Raises:
        EnvironmentLacks: the target's runtime or device is not here.
    """
    log.info("verdict: exporting and measuring fp32 and int8 for %s", target.name)
    spec = InputSpec.of(data.preprocess)
    where: dict[str, Any] = {"runtime": target.runtime, "device": target.device, "threads": threads}
    files = {"fp32": folder / "fp32.onnx", "int8": folder / "int8.onnx"}
    try:
        onnx_export.export(model.eval(), files["fp32"], spec)
        exportable = quantization.to_export(quantised.eval())
        onnx_export.export(exportable, files["int8"], spec)
        with (
            open_session(files["fp32"], **where) as a,
            open_session(files["int8"], **where) as b,
            open_session(files["fp32"], **where) as again,
        ):
            scores = [
                score_split(session, data.dataset, "test", data.preprocess) for session in (a, b)
            ]
            images = data.images("test", IMAGES).numpy()
            feeds = [from_images(s.inputs[0], images, 1, "held-out images") for s in (a, b)]
            found = compare(a, feeds[0], b, feeds[1], again, EFFORT)
        candidates = tuple(
            Candidate(
                name, score.metric.name, score.value, score.n, measured.median_ms,
                files[name].stat().st_size,
            )
            for name, score, measured in zip(files, scores, (found.a, found.b), strict=True)
        )  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    low, high = 1 / found.ratio_99.high, 1 / found.ratio_99.low
    judged = scores[0].metric
    lost = judged.points(judged.loss(candidates[0].value, candidates[1].value))
    unit = "points" if judged.unit else f"of {judged.title}"
    word, reason = decide(low, high, lost, max_drop, unit)
    verdict = Verdict(
        word, reason, target.name, preflight().cpu_model, 1 / found.ratio.value, low, high, lost,
        max_drop, candidates, {"fp16": target.no_float16} if target.no_float16 else {},
    )  # fmt: skip
    for line in sentences(verdict):
        log.info("%s", line)
    return verdict
