"""Whether a figure is the same from the process of its own that vbench measures in.

    python tests/benchmarks/apart_figures.py [QUADS]

Three models without weights are measured here and there in turn (A B B A), 0.6 s each. Printed is
the ratio of the medians, there over here, with its 95 % interval: it should hold 1, and the centre
lie within 1 %.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from vcompress.bench import onnx_file, stats
from vcompress.bench.run import apart, job
from vcompress.bench.run.options import Options

MODELS = {
    "identity": onnx_file.identity_model(),
    "chain, 192": onnx_file.chain_model(),
    "chain, 256": onnx_file.chain_model(256, 8),
}


def main(quads: int = 10) -> None:
    print("| model | median here, ms | ratio there / here | 95 % interval |")
    print("| --- | ---: | ---: | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for name, content in MODELS.items():
            path = Path(folder) / "model.onnx"
            path.write_bytes(content)
            options = Options(models=(path,), threads=1, seconds=0.6, cold_start=False)
            here: list[list[float]] = []
            there: list[list[float]] = []
            for turn in range(quads):
                found: dict[str, list[float]] = {"here": [], "there": []}
                order = ("here", "there", "there", "here")
                for where in order if turn % 2 == 0 else (order[1], order[0], order[0], order[1]):
                    result = job.run(options) if where == "here" else apart.run(options)
                    found[where].append(result.models[0].median_ms)
                here.append(found["here"])
                there.append(found["there"])
            ratio = stats.ratio_interval(np.array(here), np.array(there))
            print(
                f"| {name} | {np.median(here):.4f} | {ratio.value:.4f} | {ratio.low:.4f} to "
                f"{ratio.high:.4f} |", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
