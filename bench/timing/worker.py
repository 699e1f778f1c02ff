"""The fresh process of `fresh.py`, which loads and runs a model.

`python -m vcompress.bench.timing.worker` starts it. A file that crashes the runtime or never ends
does so here, away from the measurement.
"""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter
from typing import Any

from ..apart import say, serve


def _work(request: dict[str, Any]) -> dict[str, Any]:
    from .. import runtimes
    from .inputs import from_file, resolve_shapes, synthetic
    from .measure import Effort, first_run, measure

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
    if request["inputs"]:
        feed = from_file(request["inputs"], session.inputs)
    else:
        given = {name: tuple(shape) for name, shape in request["shape"].items()}
        if request["image_shape"] and not given and len(session.inputs) == 1:
            spec = session.inputs[0]
            first = spec.shape[0] if isinstance(spec.shape[0], int) else request["batch"]
            given[spec.name] = (first, *request["image_shape"])
        shapes = resolve_shapes(session.inputs, request["batch"], given)
        feed = synthetic(session.inputs, shapes, request["seed"])
    say(stage="running it once")
    first_ms, bad = first_run(session, feed)
    found: dict[str, Any] = {
        "import_ms": import_ms,
        "load_ms": session.load_ms,
        "first_run_ms": first_ms,
        "peak_memory_bytes": memory()[1],
        "model_memory_bytes": max(memory()[1] - before, 0),
        "nonfinite": bad,
    }
    if request["measure"]:
        measured = measure(session, feed, Effort(**request["measure"]))
        found["samples_ns"] = measured.samples_ns.tolist()
        found["starts_ns"] = measured.starts_ns.tolist()
        found["warmup"] = vars(measured.warmup)
    return found


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


if __name__ == "__main__":
    sys.exit(serve(_work))
