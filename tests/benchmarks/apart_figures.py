"""Whether a figure is the same from the process of its own that vbench measures in.

    python tests/benchmarks/apart_figures.py [QUADS]

Three models without weights are measured in turn (A B B A) in a process that does nothing else,
and in the one that vbench starts, 0.6 s each. Both are fresh every time, for each process has a
layout of memory of its own. Printed is the ratio of the medians, vbench's over the other, with its
95 % interval: it should hold 1, and the centre lie within 1 %.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from vcompress.bench import onnx_file, stats
from vcompress.bench.run import apart
from vcompress.bench.run.options import Options

MODELS = {
    "identity": onnx_file.identity_model(),
    "chain, 192": onnx_file.chain_model(),
    "chain, 256": onnx_file.chain_model(256, 8),
}


ALONE = """
import sys
from pathlib import Path
from vcompress.bench.run import job
from vcompress.bench.run.options import Options
options = Options(models=(Path(sys.argv[1]),), threads=1, seconds=0.6, cold_start=False)
print(job.run(options).models[0].median_ms)
"""


def alone(path: Path) -> float:
    """The median in ms, in a process that measures and does nothing else."""
    command = [sys.executable, "-c", ALONE, str(path)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def by_vbench(path: Path) -> float:
    """The median in ms as vbench measures it."""
    options = Options(models=(path,), threads=1, seconds=0.6, cold_start=False)
    return apart.run(options).models[0].median_ms


def main(quads: int = 10) -> None:
    print("| model | median alone, ms | ratio vbench / alone | 95 % interval |")
    print("| --- | ---: | ---: | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for name, content in MODELS.items():
            path = Path(folder) / "model.onnx"
            path.write_bytes(content)
            rows: dict[str, list[list[float]]] = {"alone": [], "vbench": []}
            for turn in range(quads):
                found: dict[str, list[float]] = {"alone": [], "vbench": []}
                first, second = ("alone", "vbench") if turn % 2 == 0 else ("vbench", "alone")
                for which in (first, second, second, first):
                    measured = alone(path) if which == "alone" else by_vbench(path)
                    found[which].append(measured)
                for which, pair in found.items():
                    rows[which].append(pair)
            ratio = stats.ratio_interval(np.array(rows["alone"]), np.array(rows["vbench"]))
            print(
                f"| {name} | {np.median(rows['alone']):.4f} | {ratio.value:.4f} | {ratio.low:.4f} "
                f"to {ratio.high:.4f} |", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
