"""How often is a slowdown of 3 % found?

A against A with a busy wait of 3 % of its median in every call. At least 90 % of 50 trials must
say SLOWER, each within 20 s. Run it alone on a quiet machine; 50 trials take about a quarter of an
hour.

    python tests/benchmarks/planted_slowdown.py [--trials 50] [--planted 0.03] [--model FILE]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from vcompress.bench import onnx_file, stats
from vcompress.bench.timing import selftest

LIMIT, MOST_SECONDS = 0.9, 20.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--planted", type=float, default=0.03)
    parser.add_argument("--model", type=Path, help="by default a chain of matrix products")
    asked = parser.parse_args()
    verdicts: Counter[str] = Counter()
    longest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = asked.model or Path(folder) / "chain.onnx"
        if asked.model is None:
            path.write_bytes(onnx_file.chain_model())
        for trial in range(asked.trials):
            start = time.monotonic()
            found = selftest.trial(path, 1, asked.planted)
            spent = time.monotonic() - start
            longest = max(longest, spent)
            verdicts[found.verdict] += 1
            print(
                f"{trial + 1:3d}  {found.verdict:12s} {found.ratio.value:.4f} "
                f"({found.ratio.low:.4f} to {found.ratio.high:.4f})  floor {found.floor:.2%}  "
                f"{spent:.1f} s",
                flush=True,
            )
    share = stats.wilson(verdicts["SLOWER"], asked.trials)
    print(f"{dict(verdicts)}: a slowdown of {asked.planted:.0%} found in {share.value:.0%} "
          f"({share.low:.0%} to {share.high:.0%}), at least {LIMIT:.0%}; longest trial "
          f"{longest:.1f} s, at most {MOST_SECONDS:g} s")  # fmt: skip
    return 0 if share.value >= LIMIT and longest <= MOST_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
