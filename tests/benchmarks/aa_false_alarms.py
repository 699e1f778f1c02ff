"""How often does vbench call a model faster or slower than itself?

A against A, as `vbench a.onnx a.onnx` does it, under a background load that comes and goes. At
most 5 % may say FASTER or SLOWER. 200 trials take about an hour.

    python tests/benchmarks/aa_false_alarms.py [--trials 200] [--no-load] [--model FILE]
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from vcompress.bench import onnx_file, stats
from vcompress.bench.timing import selftest
from vcompress.bench.timing.compare import CompareEffort

LIMIT = 0.05


def load(seed: int) -> None:
    """Busy for a while, idle for a while: 0.2 to 3 s each."""
    rng = random.Random(seed)
    while True:
        end = time.monotonic() + rng.uniform(0.2, 3.0)
        while time.monotonic() < end:
            sum(i * i for i in range(10_000))
        time.sleep(rng.uniform(0.2, 3.0))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=8.0, help="of a trial's A against B part")
    parser.add_argument("--processes", type=int, default=2, help="of background load")
    parser.add_argument("--no-load", action="store_true")
    parser.add_argument("--model", type=Path, help="by default a chain of matrix products")
    asked = parser.parse_args()
    workers = [
        multiprocessing.Process(target=load, args=(i,), daemon=True)
        for i in range(0 if asked.no_load else asked.processes)
    ]
    for worker in workers:
        worker.start()
    verdicts: Counter[str] = Counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = asked.model or Path(folder) / "chain.onnx"
            if asked.model is None:
                path.write_bytes(onnx_file.chain_model())
            for trial in range(asked.trials):
                found = selftest.trial(path, 1, 0.0, CompareEffort(seconds=asked.seconds))
                verdicts[found.verdict] += 1
                print(
                    f"{trial + 1:3d}  {found.verdict:12s} {found.ratio.value:.4f} "
                    f"({found.ratio.low:.4f} to {found.ratio.high:.4f})  floor {found.floor:.2%}  "
                    f"{found.seconds:.1f} s",
                    flush=True,
                )
    finally:
        for worker in workers:
            worker.terminate()
    alarms = verdicts["FASTER"] + verdicts["SLOWER"]
    share = stats.wilson(alarms, asked.trials)
    print(f"{dict(verdicts)}: {alarms} false alarms in {asked.trials}, {share.value:.1%} "
          f"({share.low:.1%} to {share.high:.1%}); at most {LIMIT:.0%}")  # fmt: skip
    return 0 if share.value <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
