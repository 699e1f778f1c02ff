"""How long should the blocks of an interleaved comparison be?

A model against itself, the same time for each length of block: the narrower the interval of the
ratio, the better. Run it alone on the machine.

    python tests/benchmarks/block_length.py [--seconds 6] [--repeats 2]
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

from vcompress.bench import onnx_file
from vcompress.bench.runtimes import open_session
from vcompress.bench.timing.compare import DROPPED, BlockPlan, interleave
from vcompress.bench.timing.inputs import resolve_shapes, synthetic
from vcompress.bench.timing.measure import Effort, Ring, no_collection, warm_up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--repeats", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chain.onnx"
        path.write_bytes(onnx_file.chain_model())
        with open_session(path, threads=1) as a, open_session(path, threads=1) as b:
            feed = synthetic(a.inputs, resolve_shapes(a.inputs, 1))
            rings = Ring(a, feed), Ring(b, feed)
            with no_collection():
                for ring in rings:
                    warm_up(ring, Effort())
                for _ in range(asked.repeats):
                    for block in (0.1, 0.05, 0.02, 0.01):
                        quads = int(asked.seconds / (4 * block))
                        found = interleave(
                            *rings, quads=quads, seconds=0.0, precision=math.inf,
                            plan=BlockPlan(DROPPED, 5, block),
                        ).ratio()  # fmt: skip
                        print(
                            f"{1000 * block:5.0f} ms  {quads:4d} quads  ratio {found.value:.4f} "
                            f"({found.low:.4f} to {found.high:.4f})  +-{found.half_width:.2%}"
                        )


if __name__ == "__main__":
    main()
