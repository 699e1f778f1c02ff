"""`bench.measure` and `bench.compare`: what the command vbench does, from Python."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundle import Bundle
    from .reports.result import ModelResult, Result


def measure(
    model: str | os.PathLike[str] | Bundle,
    *,
    data: str | None = None,
    task: str | None = None,
    runtime: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    seconds: float | None = None,
    batch: int | None = None,
    apart: bool = True,
) -> ModelResult:
    """Latency, size and, where there are data, accuracy of a model in the runtime that ships it.

    Args:
        model: an ONNX file, an engine or a bundle.
        data: images to score on, as `--data` takes them; default: those that the bundle records.
        task: classification, multilabel or regression; default: the bundle's.
        runtime: onnxruntime, openvino, tensorrt, ...; default: by the file's ending.
        device: cpu, cuda, ...; never replaced by another.
        threads: of the runtime; None is its own default.
        seconds: how long to measure; default: two to three.
        batch: images in one call; default: 1, or what the model fixes.
        apart: whether a process of its own, limited in time, CPU time and memory, runs the model;
            False runs it in this one, for files that you made.

    Returns:
        `median_ms` and `interval_ms` (95 %) of one call, `accuracy`, `artefact` (file and size),
        `warnings` where the machine was not quiet, and `measurement` with all samples.

    Raises:
        UserError: a missing or damaged file, or data that do not fit it.
        EnvironmentLacks: the runtime or the device is not here.
    """
    found: ModelResult = _run(
        (model,), data=data, task=task, runtime=runtime, device=device, threads=threads,
        seconds=seconds, batch=() if batch is None else (batch,), in_child=apart,
    ).models[0]  # fmt: skip
    return found


def compare(
    a: str | os.PathLike[str] | Bundle,
    b: str | os.PathLike[str] | Bundle,
    *,
    data: str | None = None,
    task: str | None = None,
    runtime: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    seconds: float | None = None,
    margin: float = 0.01,
    apart: bool = True,
) -> Result:
    """B against A, the baseline: interleaved in one process, so that what drifts hits both.

    Args:
        margin: what counts as the same speed, a share of the latency.
        seconds: how long to interleave, at most; default 8, warm-up and the A/A run apart.
        apart: as of `measure`: both models run in one process of their own.

    The other arguments are those of `measure`.

    Returns:
        `comparison` (`ratio` of the latencies, B over A, with its 95 % interval, and `verdict`),
        `change` of the accuracy where there are data, and `models`, each as from `measure`.

    Raises:
        UserError: a missing or damaged file, or data that do not fit both.
        EnvironmentLacks: the runtime or the device is not here.
    """
    return _run(
        (a, b), data=data, task=task, runtime=runtime, device=device, threads=threads,
        seconds=seconds, margin=margin, in_child=apart,
    )  # fmt: skip


def _run(models: tuple[Any, ...], in_child: bool, **options: Any) -> Result:
    from .run import apart, job
    from .run.options import Options

    # A bundle and what `to_onnx` returns hold their path.
    paths = tuple(Path(getattr(model, "path", model)) for model in models)
    # A fresh process, which shows a cold start, is for the command.
    asked = Options(models=paths, cold_start=False, **options)
    return apart.run(asked) if in_child else job.run(asked)
