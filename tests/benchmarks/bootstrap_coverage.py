"""How often the bootstrap's 95 % interval of a multi-label score holds the truth.

    python tests/benchmarks/bootstrap_coverage.py --images 200 1000 --trials 100

The truth is the score of 40,000 simulated images with four labels, three of them rare. Prints for
each metric the share of trials whose interval holds it: plain percentiles beside the bias-corrected
ones that are in use.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from vcompress.bench import stats
from vcompress.bench.tasks.multilabel import _all

METRICS = ("mAP", "f1_micro", "f1_macro")


def simulated(images: int, seed: int) -> tuple[Any, Any]:
    """Probabilities and labels of that many images, `[N, 4]`."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((images, 4)) < (0.5, 0.2, 0.05, 0.1)).astype(np.int8)
    logits = 2.0 * labels - 1 + 2 * rng.standard_normal((images, 4))
    return 1 / (1 + np.exp(-logits)), labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--trials", type=int, default=100)
    options = parser.parse_args()
    scores, labels = simulated(40_000, 10**6)
    truth = _all(scores, labels, np.ones((1, len(labels))))[0]
    print(f"| images | interval | {' | '.join(METRICS)} |\n|--:|---|--:|--:|--:|")
    for images in options.images:
        inside = np.zeros((2, 3))
        for seed in range(options.trials):
            scores, labels = simulated(images, seed)
            value = _all(scores, labels, np.ones((1, images)))[0]
            drawn = stats.bootstrap(lambda w: _all(scores, labels, w), images)  # noqa: B023
            for k in range(3):
                plain = np.quantile(drawn[:, k], [0.025, 0.975])
                found = stats.percentile_interval(float(value[k]), drawn[:, k])
                for n, (low, high) in enumerate((plain, (found.low, found.high))):
                    inside[n, k] += low <= truth[k] <= high
        for name, row in zip(("percentiles", "bias-corrected"), inside, strict=True):
            cells = " | ".join(f"{share:.2f}" for share in row / options.trials)
            print(f"| {images} | {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
