"""The statistics of latency and accuracy: pure functions on arrays.

scipy is imported where it is needed: a device that predicts does not need it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, exp, log, sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
MANY = 10_000
LEAST_CONFIDENCE = 0.9
"""What an interval must reach to carry a verdict: six samples make 97 %, five processes 94 %."""
CORRELATED = 0.1  # lag-1 correlation from which samples do not count as independent
# Fewest samples that carry a percentile: MLPerf LoadGen's early stopping at 99 % confidence.
# https://github.com/mlcommons/inference/blob/master/loadgen/early_stopping.cc
SUPPORT = {0.9: 64, 0.95: 130, 0.99: 662, 0.999: 6636}


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, in the unit of what was estimated."""

    value: float
    low: float
    high: float
    method: str
    confidence: float = 0.95

    @property
    def carries(self) -> bool:
        """Whether there were samples enough for a verdict: one alone has an interval of no width
        and no confidence."""
        return self.confidence >= LEAST_CONFIDENCE

    @property
    def half_width(self) -> float:
        """Half the interval's width as a share of the value."""
        return (self.high - self.low) / 2 / abs(self.value) if self.value else float("inf")


def order_interval(samples: Floats, q: float = 0.5, confidence: float = 0.95) -> Interval:
    """Distribution-free interval of a quantile by order statistics, for independent samples.

    The ranks l < u are the innermost with P(l <= Binomial(n, q) < u) >= confidence; with too few
    samples for that the interval is the whole range, and its confidence is lower.
    """
    from scipy.special import bdtr

    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    n = len(ordered)
    if n == 0:
        raise ValueError("no samples")
    tail = (1 - confidence) / 2
    cdf = bdtr(np.arange(n), n, q)  # P(Binomial <= k), k = 0..n-1
    low = int(np.searchsorted(cdf, tail, side="right")) - 1  # largest k with cdf <= tail
    high = int(np.searchsorted(cdf, 1 - tail, side="left"))
    method, reached = "order statistics", confidence
    if low < 0 or high >= n:
        method = "order statistics, whole range"
        reached = float(1 - q**n - (1 - q) ** n)
    return Interval(
        float(np.quantile(ordered, q)), float(ordered[max(low, 0)]),
        float(ordered[min(high, n - 1)]), method, min(confidence, reached),
    )  # fmt: skip


def lag1(samples: Floats) -> float:
    """Correlation of each sample's rank with the next one's: outliers weigh no more than others."""
    x = np.asarray(samples, dtype=np.float64)
    if len(x) < 3 or x.min() == x.max():
        return 0.0
    ranks = _ranks(x)
    a, b = ranks[:-1] - ranks[:-1].mean(), ranks[1:] - ranks[1:].mean()
    scale = sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale else 0.0


def _ranks(x: Floats) -> Floats:
    """Ranks with ties averaged."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    averages: Floats = (2 * ends - counts - 1) / 2
    return averages[inverse]


def block_interval(
    samples: Floats, q: float = 0.5, confidence: float = 0.95, resamples: int = 400, seed: int = 0,
    correlation: float | None = None,
) -> Interval:  # fmt: skip
    """Moving-block bootstrap of a quantile, for samples that hang together.

    Künsch, 1989. The block is n^(1/3) scaled by the correlation's reach, (1 + r) / (1 - r) for a
    lag-1 correlation r, and at most a tenth of the samples. Above 10,000 samples the bootstrap's
    normal limit stands for the resamples, which would take seconds.
    """
    x = np.asarray(samples, dtype=np.float64)
    n = len(x)
    r = min(max(lag1(x) if correlation is None else correlation, 0.0), 0.98)
    block = min(max(ceil(n ** (1 / 3) * (1 + r) / (1 - r)), 1), max(n // 10, 1))
    value, tail = float(np.quantile(x, q)), (1 - confidence) / 2
    if n > MANY:
        low, high = _block_limits(x, q, block, tail)
    else:
        rng = np.random.default_rng(seed)
        starts = rng.integers(0, n - block + 1, size=(resamples, ceil(n / block)))
        offsets = np.arange(block)
        found = np.empty(resamples)
        for i, row in enumerate(starts):  # row by row: all at once would need gigabytes
            found[i] = np.quantile(x[(row[:, None] + offsets).ravel()[:n]], q)
        low, high = np.quantile(found, [tail, 1 - tail])
    return Interval(
        value, min(float(low), value), max(float(high), value),
        f"moving-block bootstrap, blocks of {block}", confidence,
    )  # fmt: skip


def _block_limits(x: Floats, q: float, block: int, tail: float) -> tuple[float, float]:
    """Where the block bootstrap of a quantile has `tail` of its mass below, and above.

    A resample's quantile is at most t where enough of its samples are. Their number is a sum over
    n / block blocks that are drawn alike, whose mean and variance one pass over `x` gives.
    """
    from scipy.special import ndtr

    n, values = len(x), np.unique(x)

    def below(t: float) -> float:
        """The bootstrap's share of quantiles that are at most t."""
        counts = np.concatenate([[0], np.cumsum(x <= t, dtype=np.int64)])
        inside = counts[block:] - counts[:-block]
        mean, spread = inside.mean() * n / block, inside.std() * sqrt(n / block)
        if spread == 0:
            return float(mean >= q * n)
        return float(ndtr((mean - q * n) / spread))

    def first(share: float) -> float:
        low, high = 0, len(values) - 1
        while low < high:
            middle = (low + high) // 2
            if below(values[middle]) >= share:
                high = middle
            else:
                low = middle + 1
        return float(values[low])

    return first(tail), first(1 - tail)


def quantile_interval(
    samples: Floats, q: float = 0.5, confidence: float = 0.95, correlation: float | None = None
) -> Interval:
    """Order statistics where the samples are independent, else a moving-block bootstrap.

    Args:
        correlation: their `lag1`, where it is known already.
    """
    correlation = lag1(samples) if correlation is None else correlation
    if correlation < CORRELATED:
        return order_interval(samples, q, confidence)
    return block_interval(samples, q, confidence, correlation=correlation)


def supported(n: int, q: float) -> bool:
    """Whether n samples carry this percentile; the median always stands."""
    return n >= SUPPORT.get(q, 1)


def wilson(correct: int, n: int, confidence: float = 0.95) -> Interval:
    """Interval of a share. Wilson, 1927: it holds near 0 and 1, where the normal one fails."""
    from scipy.special import ndtri

    if not 0 <= correct <= n or n == 0:
        raise ValueError(f"{correct} of {n}")
    z = float(ndtri(1 - (1 - confidence) / 2))
    share, square = correct / n, z * z
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = z / (1 + square / n) * sqrt(share * (1 - share) / n + square / (4 * n * n))
    low = 0.0 if correct == 0 else max(centre - half, 0.0)
    high = 1.0 if correct == n else min(centre + half, 1.0)
    return Interval(share, low, high, "Wilson", confidence)


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value that A and B are right equally often.

    McNemar, 1947. `only_a` images that A alone has right, `only_b` those that B alone has.
    """
    from scipy.special import bdtr

    n = only_a + only_b
    return 1.0 if n == 0 else min(1.0, 2 * float(bdtr(min(only_a, only_b), n, 0.5)))


def paired_difference(only_a: int, only_b: int, n: int, confidence: float = 0.95) -> Interval:
    """B's share right minus A's on the same n images, with an interval.

    Newcombe, 1998, after Wald with the continuity of Bonett and Price, 2012: one image is added
    to each kind of disagreement, which keeps the coverage where few images disagree.
    """
    from scipy.special import ndtri

    if n == 0:
        raise ValueError("no images")
    z = float(ndtri(1 - (1 - confidence) / 2))
    a, b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = z * sqrt(max(a + b - (b - a) ** 2, 0.0) / (n + 2))
    return Interval(
        (only_b - only_a) / n, max(b - a - half, -1.0), min(b - a + half, 1.0),
        "Bonett-Price", confidence,
    )  # fmt: skip


def walsh_interval(x: Floats, confidence: float = 0.95) -> Interval:
    """Hodges-Lehmann centre of a symmetric distribution, with Wilcoxon's exact interval.

    The median of all pairwise means; a few wild values move it little. Hollander and Wolfe,
    Nonparametric Statistical Methods, 3.2 and 3.3. Exact to 60 values, the normal limit above.
    """
    from scipy.special import ndtri

    x = np.asarray(x, dtype=np.float64)
    n = len(x)
    if n == 0:
        raise ValueError("no values")
    if n == 1:
        return Interval(float(x[0]), float(x[0]), float(x[0]), "one value", 0.0)
    i, j = np.triu_indices(n)
    means = np.sort((x[i] + x[j]) / 2)
    total, tail = len(means), (1 - confidence) / 2
    if n <= 60:
        ways = np.zeros(total + 1)
        ways[0] = 1
        for rank in range(1, n + 1):  # how many subsets of the ranks 1..n have each sum
            ways[rank:] = ways[rank:] + ways[: total + 1 - rank]
        below = np.cumsum(ways) / 2.0**n
        drop = int(np.searchsorted(below, tail, side="right"))
    else:
        spread = sqrt(n * (n + 1) * (2 * n + 1) / 24)
        drop = int(total / 2 + float(ndtri(tail)) * spread)
        below = np.array([])
    reached = confidence
    if drop == 0:  # so few values that even the whole range is short of the confidence
        reached = 1 - 2 / 2.0**n
    drop = max(drop, 1)
    return Interval(
        float(np.median(means)), float(means[drop - 1]), float(means[total - drop]),
        "Hodges-Lehmann, Wilcoxon", min(confidence, reached),
    )  # fmt: skip


def ratio_interval(a_blocks: Floats, b_blocks: Floats, confidence: float = 0.95) -> Interval:
    """Ratio B/A from the medians of interleaved blocks in the order A B B A.

    `a_blocks`, `b_blocks` [Q, 2]: per quad the medians of its two blocks of A and of B, in the
    order they ran. Half the log ratio of each quad's products cancels a linear drift; the
    Hodges-Lehmann centre of the quads ignores the few that a disturbance hit.
    """
    logs = (np.log(b_blocks).sum(1) - np.log(a_blocks).sum(1)) / 2
    found = walsh_interval(logs, confidence)
    return Interval(
        exp(found.value), exp(found.low), exp(found.high),
        f"{found.method} of ABBA quads", found.confidence,
    )  # fmt: skip


Verdict = Literal["FASTER", "SLOWER", "EQUIVALENT", "INCONCLUSIVE"]


def verdict(
    ratio: Interval, floor: float, margin: float = 0.01, strict: Interval | None = None
) -> Verdict:
    """What a latency ratio B/A says about B.

    FASTER and SLOWER need an interval without 1 and an effect above both the margin and the
    noise floor, the largest |log ratio| that an A/A run's interval holds. EQUIVALENT needs the
    whole interval within the margin. `strict` is a wider interval that a difference must be clear
    of as well: a false alarm costs more than an INCONCLUSIVE.
    """
    if not ratio.carries:  # too few samples say nothing
        return "INCONCLUSIVE"
    wide = strict or ratio
    least = max(log(1 + margin), floor)
    effect = log(ratio.value)
    if max(abs(log(ratio.low)), abs(log(ratio.high))) <= log(1 + margin):
        return "EQUIVALENT"
    if max(ratio.high, wide.high) < 1 and -effect > least:
        return "FASTER"
    if min(ratio.low, wide.low) > 1 and effect > least:
        return "SLOWER"
    return "INCONCLUSIVE"


def slope_share(samples: Floats) -> float:
    """Drift over the run as a share of the median: Theil-Sen line through 20 block medians."""
    x = np.asarray(samples, dtype=np.float64)
    parts = [np.median(p) for p in np.array_split(x, min(20, len(x))) if len(p)]
    if len(parts) < 3:
        return 0.0
    y = np.array(parts)
    i, j = np.triu_indices(len(y), 1)
    slope = float(np.median((y[j] - y[i]) / (j - i)))
    return slope * (len(y) - 1) / float(np.median(x))


def robust_variation(samples: Floats) -> float:
    """1.4826 times the median absolute deviation, over the median."""
    x = np.asarray(samples, dtype=np.float64)
    centre = float(np.median(x))
    return 1.4826 * float(np.median(np.abs(x - centre))) / centre if centre else 0.0


def two_modes(samples: Floats) -> bool:
    """Whether the latency lives at two levels.

    The split that leaves least variance within two groups (Otsu, 1979) on the logs without the
    extreme percent on either side; two modes where each side holds a tenth, the means are 5 %
    apart and the split explains nine tenths of the variance (a normal one gets to 0.64).
    """
    x = np.sort(np.log(np.asarray(samples, dtype=np.float64)))
    x = x[len(x) // 100 : len(x) - len(x) // 100]
    n = len(x)
    if n < 50 or x[0] == x[-1]:
        return False
    k = np.arange(1, n)
    sums = np.cumsum(x)[:-1]
    left, right = sums / k, (x.sum() - sums) / (n - k)
    between = k * (n - k) / n**2 * (right - left) ** 2
    best = int(np.argmax(between))
    share = min(k[best], n - k[best]) / n
    explained = between[best] / x.var()
    return bool(share >= 0.1 and right[best] - left[best] > 0.05 and explained > 0.9)


def bootstrap(
    statistic: Callable[[Floats], Floats], n: int, rounds: int = 1000, seed: int = 0
) -> Floats:
    """Replicates of a statistic over images that are drawn again with replacement, `[rounds, ...]`.

    Args:
        statistic: from weights `[b, n]`, how often each image was drawn, to `[b, ...]`.
        n: images.
        rounds: a fifth of them above 20,000 images, whose intervals are narrow.

    Efron, 1979. The same `n`, `rounds` and `seed` draw the same images, so that two networks are
    compared in pairs.
    """
    rng = np.random.default_rng(seed)
    rounds = rounds if n <= 20_000 else max(rounds // 5, 1)
    step = max(1, min(rounds, 4_000_000 // n))  # a few megabytes at a time
    found = []
    for start in range(0, rounds, step):
        drawn = rng.integers(0, n, size=(min(step, rounds - start), n))
        weights = np.stack([np.bincount(row, minlength=n) for row in drawn])
        found.append(statistic(weights.astype(np.float64)))
    return np.concatenate(found)


def percentile_interval(value: float, replicates: Floats, confidence: float = 0.95) -> Interval:
    """Bias-corrected percentiles of a bootstrap's replicates `[rounds]`, widened to hold `value`.

    Efron, 1981. An average precision is higher where images are drawn twice, so plain percentiles
    lie too high: they held the truth of 200 images with rare labels in 79 of 100 trials, and of
    1,000 in 89; these in 87 and 94 (tests/benchmarks/bootstrap_coverage.py).

    Replicates that are not finite, where a statistic has no value, are left out. The bounds are NaN
    where all are so.
    """
    from scipy.special import ndtr, ndtri

    known = replicates[np.isfinite(replicates)]
    if not len(known):
        return Interval(value, float("nan"), float("nan"), "none: no resample has a value", 0.0)
    below = (float((known < value).mean()) + float((known <= value).mean())) / 2
    shift = 2 * float(ndtri(min(max(below, 1e-3), 1 - 1e-3)))
    z = float(ndtri(1 - (1 - confidence) / 2))
    low, high = np.quantile(known, [ndtr(shift - z), ndtr(shift + z)])
    return Interval(
        value, min(float(low), value), max(float(high), value),
        "bootstrap of images, bias-corrected", confidence,
    )  # fmt: skip
