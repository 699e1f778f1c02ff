"""Does vbench report what a bare loop of `session.run` sees?

For each model: blocks of a bare loop and blocks of vbench's loop take turns in one process, on one
session, and the medians are set against each other. Run it alone on the machine.

    python tests/benchmarks/harness_overhead.py [MODEL.onnx ...] [--seconds S]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from time import perf_counter_ns

import numpy as np

from vcompress.bench import onnx_file, stats
from vcompress.bench.runtimes import open_session
from vcompress.bench.timing.inputs import resolve_shapes, synthetic
from vcompress.bench.timing.measure import Effort, Ring, no_collection, warm_up

LIMIT = 0.01
# Side and length of chains of matrix products, from about 0.1 to about 50 ms on one thread.
CHAINS = ((64, 4), (96, 6), (192, 4), (256, 8), (512, 8), (640, 8))


def bare_block(session: object, name: str, arrays: list[np.ndarray], turns: int) -> list[int]:
    """What one writes by hand: the session of onnxruntime, nothing of vbench."""
    raw = session._session  # type: ignore[attr-defined]
    times = []
    for turn in range(turns):
        feed = {name: arrays[turn % len(arrays)]}
        start = perf_counter_ns()
        raw.run(None, feed)
        times.append(perf_counter_ns() - start)
    return times


def compare(path: Path, seconds: float) -> tuple[float, stats.Interval]:
    """Median of the bare loop in ms, and the ratio vbench / bare from ABBA quads."""
    with open_session(path, threads=1) as session:
        feed = synthetic(session.inputs, resolve_shapes(session.inputs))
        name = session.inputs[0].name
        arrays = [f[name] for f in feed.ring]
        ring = Ring(session, feed)
        with no_collection():
            warm_up(ring, Effort(warmup_seconds=0.5, most_warmup_seconds=2.0))
            once = float(np.median(ring.spin(0, 20)[1]))
            turns = max(20, int(0.1e9 / once))
            quads = max(10, int(seconds / (4 * turns * once / 1e9)))
            bare, ours = [], []
            for quad in range(quads):
                order = "bvvb" if quad % 2 == 0 else "vbbv"
                found: dict[str, list[float]] = {"b": [], "v": []}
                for which in order:
                    times = (
                        bare_block(session, name, arrays, turns)
                        if which == "b"
                        else ring.spin(0, turns)[1]
                    )
                    found[which].append(float(np.median(times)))
                bare.append(found["b"])
                ours.append(found["v"])
        ratio = stats.ratio_interval(np.array(bare), np.array(ours))
        return float(np.median(bare)) / 1e6, ratio


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each model")
    asked = parser.parse_args()
    failed = 0
    print("bare loop   vbench / bare    95 % interval        difference below 1 %")
    with tempfile.TemporaryDirectory() as folder:
        paths = list(asked.models)
        if not paths:
            for side, length in CHAINS:
                path = Path(folder) / f"chain_{side}x{length}.onnx"
                path.write_bytes(onnx_file.chain_model(side, length))
                paths.append(path)
        for path in paths:
            ms, ratio = compare(path, asked.seconds)
            good = abs(ratio.value - 1) < LIMIT
            failed += not good
            print(
                f"{ms:8.3f} ms   {ratio.value:.4f}          {ratio.low:.4f} to {ratio.high:.4f}    "
                f"{'yes' if good else 'NO'}   {path.name}"
            )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
