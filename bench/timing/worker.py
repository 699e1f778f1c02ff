"""The fresh process of `fresh.py`, which loads and runs a model.

`python -m vcompress.bench.timing.worker` starts it. A file that crashes the runtime or never ends
does so here, away from the measurement.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

from .. import runtimes
from ..apart import say, serve
from ..runtimes.session import TensorSpec
from .inputs import RING, Feed, from_file, resolve_shapes, synthetic
from .measure import Effort, look, measure


def _work(request: dict[str, Any]) -> dict[str, Any]:
    path = Path(request["path"])
    chosen = runtimes.module(request["runtime"])
    say(stage="importing the runtime")
    start = perf_counter()
    chosen.library()
    import_ms = (perf_counter() - start) * 1e3
    before = memory()[0]
    say(stage="loading it")
    session = runtimes.open_session(
        path,
        runtime=request["runtime"],
        device=request["device"],
        threads=request["threads"],
        **request["options"],
    )
    loaded, load_peak = memory()
    # A ring is for the clock. Of the memory one set of inputs would be counted too.
    feed = _feed(request, session.inputs, RING if request["measure"] else 1)
    forget_peak()
    fed = memory()[0]
    say(stage="running it once")
    seen = look(session, feed, 0.0)
    run_peak = memory()[1]
    found: dict[str, Any] = {
        "import_ms": import_ms,
        "load_ms": session.load_ms,
        "first_run_ms": seen.first_run_ms,
        "peak_memory_bytes": max(load_peak, run_peak),
        "model_memory_bytes": max(load_peak, loaded + max(run_peak - fed, 0)) - before,
        "nonfinite": seen.nonfinite,
    }
    if request["measure"]:
        measured = measure(session, feed, Effort(**request["measure"]))
        found["samples_ns"] = measured.samples_ns.tolist()
        found["starts_ns"] = measured.starts_ns.tolist()
        found["warmup"] = vars(measured.warmup)
    return found


def _feed(request: dict[str, Any], inputs: Sequence[TensorSpec], most: int) -> Feed:
    if request["inputs"]:
        return from_file(request["inputs"], inputs)
    given = {name: tuple(shape) for name, shape in request["shape"].items()}
    if request["image_shape"] and not given and len(inputs) == 1:
        spec = inputs[0]
        given[spec.name] = (spec.images_in_call(request["batch"]), *request["image_shape"])
    shapes = resolve_shapes(inputs, request["batch"], given)
    return synthetic(inputs, shapes, request["seed"], most)


def memory() -> tuple[int, int]:
    """Resident bytes of this process: now, and at their highest since it began."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak, peak
    # Not getrusage: its peak is inherited from the process that started this one.
    found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    return int(found.get("VmRSS", 0)) * 1024, int(found.get("VmHWM", 0)) * 1024


def forget_peak() -> None:
    """Let the highest resident size begin anew, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    sys.exit(serve(_work))
