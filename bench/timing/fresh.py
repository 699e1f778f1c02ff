"""Loads a model in a fresh process: cold start, memory, and protection from a file that crashes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..apart import Reply, ask
from ..errors import UserError
from .measure import Effort, Measurement, Warmup


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the fresh process shall open and run."""

    path: Path
    runtime: str
    device: str = "cpu"
    threads: int | None = None
    options: Mapping[str, Any]
    batch: int = 1
    shape: Mapping[str, tuple[int, ...]]
    image_shape: tuple[int, ...] | None = None
    """Channels, height and width that a bundle names for its one input."""
    inputs: Path | None = None
    seed: int = 0
    timeout_s: float = 120.0


def cold_start(request: Request) -> ColdStart:
    """Load the model and run it once in a fresh process.

    Raises `UserError` where it crashes, does not end in time, or does not load: what happens there
    would have happened here.
    """
    found = _ask(request, None)
    return ColdStart(
        found["import_ms"], found["load_ms"], found["first_run_ms"], found["peak_memory_bytes"],
        found["model_memory_bytes"],
    )  # fmt: skip


def processes(request: Request, effort: Effort, count: int, like: Measurement) -> Measurement:
    """Measure in `count` fresh processes, one after another.

    Layout and placement of memory differ from process to process, so the interval comes from the
    processes' medians. `like` says what was measured.
    """
    samples, starts, warmups, offset = [], [], [], 0
    for _ in range(count):
        found = _ask(replace(request, timeout_s=request.timeout_s + 200), effort)
        samples.append(np.asarray(found["samples_ns"], dtype=np.int64))
        starts.append(np.asarray(found["starts_ns"], dtype=np.int64) + offset)
        offset = int(starts[-1][-1] + samples[-1][-1])
        warmups.append(Warmup(**found["warmup"]))
    return replace(
        like,
        samples_ns=np.concatenate(samples), starts_ns=np.concatenate(starts),
        blocks=tuple(map(len, samples)), processes=count,
        inputs_from=f"random N(0, 1), seed {request.seed}" if not request.inputs else
        like.inputs_from,
        warmup=Warmup(
            sum(w.runs for w in warmups), sum(w.seconds for w in warmups),
            all(w.steady for w in warmups), warmups[-1].windows_ms,
        ),
        stopped="processes",
    )  # fmt: skip


def _ask(request: Request, effort: Effort | None) -> dict[str, Any]:
    message = {
        **{k: v for k, v in asdict(request).items() if k != "timeout_s"},
        "path": str(request.path),
        "inputs": str(request.inputs) if request.inputs else None,
        "measure": asdict(effort) if effort else None,
    }
    reply = ask("vcompress.bench.timing.worker", message, request.timeout_s)
    if reply.status is None:
        raise UserError(
            f"{request.path}: {request.runtime} did not come back within "
            f"{request.timeout_s:g} s while {_stage(reply)}. Give more time with --load-timeout, "
            "or look whether the file is whole."
        )
    reply.raise_error()
    if reply.status != 0 or "load_ms" not in reply.answer:
        raise UserError(
            f"{request.path}: {request.runtime} {reply.end} while {_stage(reply)}. The file is "
            f"damaged, or it meets a bug of the runtime.{reply.last_words}"
        )
    return reply.answer


def _stage(reply: Reply) -> str:
    stages = [line["stage"] for line in reply.said if "stage" in line]
    return stages[-1] if stages else "starting"


@dataclass(frozen=True)
class ColdStart:
    """A fresh process: what a device waits for before its first answer."""

    import_ms: float
    """Loading the runtime's library."""
    load_ms: float
    """From the path to a model ready to run."""
    first_run_ms: float
    peak_memory_bytes: int
    """Largest resident size of the process, the interpreter included."""
    model_memory_bytes: int
    """How much of it loading and the first run added."""
