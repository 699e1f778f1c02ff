from __future__ import annotations

import math
from time import perf_counter

import numpy as np
import pytest
from scipy.special import bdtr

from vcompress.bench import stats


@pytest.mark.parametrize("n", [64, 200, 1001])
@pytest.mark.parametrize("q", [0.5, 0.9])
def test_order_statistics_cover_the_quantile_as_often_as_they_promise(n: int, q: float) -> None:
    rng = np.random.default_rng(0)
    truth = -np.log(1 - q)
    hits = 0
    for _ in range(2000):
        found = stats.order_interval(rng.exponential(size=n), q)
        hits += found.low <= truth <= found.high
    assert 0.94 <= hits / 2000 <= 0.985


def test_order_statistics_give_the_textbook_ranks_for_ten_samples() -> None:
    found = stats.order_interval(np.arange(1, 11, dtype=float))
    assert (found.low, found.high) == (2, 9)  # coverage 97.9 %


def test_five_samples_say_that_their_interval_is_short_of_the_confidence() -> None:
    found = stats.order_interval(np.arange(5.0))
    assert (found.low, found.high) == (0, 4)
    assert found.confidence == pytest.approx(1 - 2 / 2**5)


@pytest.mark.parametrize("q", [0.9, 0.95, 0.99, 0.999])
def test_the_supporting_sample_counts_are_the_smallest_at_loadgens_confidence(q: float) -> None:
    n = stats.SUPPORT[q]
    assert bdtr(1, n, 1 - q) <= 0.01 < bdtr(1, n - 1, 1 - q)


def test_lag_one_correlation_finds_an_autoregression_and_ignores_outliers() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(size=4000)
    walk = np.empty(4000)
    walk[0] = 0
    for i in range(1, 4000):
        walk[i] = 0.6 * walk[i - 1] + noise[i]
    assert stats.lag1(walk) == pytest.approx(0.58, abs=0.05)
    wild = rng.normal(size=4000)
    wild[::100] += 1e6
    assert abs(stats.lag1(wild)) < 0.05


def test_the_bootstrap_covers_the_median_of_correlated_samples_where_order_statistics_fail() -> (
    None
):
    rng = np.random.default_rng(2)
    hits, naive = 0, 0
    for trial in range(150):
        noise = rng.normal(size=1000)
        x = np.empty(1000)
        x[0] = noise[0] / 0.6
        for i in range(1, 1000):
            x[i] = 0.8 * x[i - 1] + noise[i]
        found = stats.block_interval(x + 100, resamples=200, seed=trial)
        hits += found.low <= 100 <= found.high
        plain = stats.order_interval(x + 100)
        naive += plain.low <= 100 <= plain.high
    assert hits / 150 > 0.85
    assert naive / 150 < 0.7


def correlated(n: int, seed: int = 3) -> np.ndarray:
    from scipy.signal import lfilter

    return 100 + lfilter([1], [1, -0.6], np.random.default_rng(seed).normal(size=n))


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_the_limit_of_the_bootstrap_is_that_of_many_resamples(
    q: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = correlated(20_000)
    limit = stats.block_interval(x, q)
    monkeypatch.setattr(stats, "MANY", 10**9)
    drawn = stats.block_interval(x, q, resamples=2000)
    width = drawn.high - drawn.low
    assert limit.value == drawn.value
    assert abs(limit.low - drawn.low) < 0.1 * width
    assert abs(limit.high - drawn.high) < 0.1 * width


def test_half_a_million_samples_have_their_interval_at_once() -> None:
    x = correlated(500_000)
    begin = perf_counter()
    found = stats.quantile_interval(x)
    assert perf_counter() - begin < 1.5  # resampling takes 5 to 10 s
    assert found.low < 100 < found.high
    assert found.half_width < 0.001


def test_one_sample_carries_nothing_and_six_do() -> None:
    assert [stats.order_interval(np.arange(1.0, n + 1)).carries for n in (1, 4, 5, 6)] == [
        False, False, True, True,
    ]  # fmt: skip
    alone = stats.order_interval(np.array([5.0]))
    assert (alone.low, alone.high, alone.confidence) == (5, 5, 0)
    one = stats.ratio_interval(np.ones((1, 2)), np.full((1, 2), 2.0))
    assert (one.value, one.confidence) == (pytest.approx(2), 0)
    assert stats.verdict(one, 0.0) == "INCONCLUSIVE"


def test_wilson_gives_the_published_interval() -> None:
    found = stats.wilson(81, 263)  # Newcombe, 1998, table I
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)
    assert stats.wilson(0, 20).low == 0
    assert stats.wilson(20, 20).high == 1


def test_mcnemar_is_the_exact_binomial_test() -> None:
    assert stats.mcnemar(0, 0) == 1.0
    assert stats.mcnemar(1, 9) == pytest.approx(22 / 1024)
    assert stats.mcnemar(9, 1) == stats.mcnemar(1, 9)


def test_the_paired_difference_covers_the_truth() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(2000):
        only_a, only_b, _ = rng.multinomial(300, [0.03, 0.01, 0.96])
        found = stats.paired_difference(int(only_a), int(only_b), 300)
        hits += found.low <= -0.02 <= found.high
    assert 0.94 <= hits / 2000 <= 0.985


def test_the_wilcoxon_interval_is_that_of_the_tables() -> None:
    # Hollander and Wolfe, table A.4: for n = 10 the 95.2 % interval drops 8 Walsh averages.
    x = np.array([1.0, 2, 4, 8, 16, 32, 64, 128, 256, 512])
    i, j = np.triu_indices(10)
    means = np.sort((x[i] + x[j]) / 2)
    found = stats.walsh_interval(x)
    assert (found.low, found.high) == (means[8], means[-9])


@pytest.mark.parametrize("n", [10, 20, 80])
def test_the_wilcoxon_interval_covers_the_centre(n: int) -> None:
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(1000):
        found = stats.walsh_interval(rng.standard_t(3, size=n))
        hits += found.low <= 0 <= found.high
    assert 0.93 <= hits / 1000 <= 0.985


def test_the_ratio_of_interleaved_blocks_is_free_of_a_linear_drift() -> None:
    time = np.arange(80, dtype=float).reshape(20, 4)
    level = np.exp(0.01 * time)  # 1 % slower with each block
    blocks = level * np.array([1, 1.05, 1.05, 1])
    found = stats.ratio_interval(blocks[:, [0, 3]], blocks[:, [1, 2]])
    assert found.value == pytest.approx(1.05, rel=1e-9)
    assert found.high - found.low < 1e-9


@pytest.mark.parametrize(
    ("interval", "floor", "expected"),
    [
        ((0.5, 0.4, 0.6), 0.0, "FASTER"),
        ((1.5, 1.4, 1.6), 0.0, "SLOWER"),
        ((1.5, 1.4, 1.6), 0.5, "INCONCLUSIVE"),
        ((1.002, 0.995, 1.009), 0.3, "EQUIVALENT"),
        ((1.02, 0.99, 1.05), 0.0, "INCONCLUSIVE"),
        ((1.008, 1.002, 1.014), 0.0, "INCONCLUSIVE"),
    ],
)
def test_a_verdict_needs_an_effect_above_the_margin_and_the_noise_floor(
    interval: tuple[float, float, float], floor: float, expected: str
) -> None:
    assert stats.verdict(stats.Interval(*interval, "given"), floor) == expected


def test_two_levels_are_found_and_one_wide_level_is_not() -> None:
    rng = np.random.default_rng(5)
    low, high = rng.normal(1, 0.01, 700), rng.normal(1.3, 0.01, 300)
    assert stats.two_modes(np.concatenate([low, high]))
    assert not stats.two_modes(rng.normal(1, 0.05, 1000))
    assert not stats.two_modes(rng.lognormal(0, 0.2, 1000))


def test_drift_is_the_change_over_the_whole_run() -> None:
    rng = np.random.default_rng(6)
    x = np.linspace(1, 1.1, 4000) * rng.normal(1, 0.02, 4000)
    assert stats.slope_share(x) == pytest.approx(0.095, abs=0.01)
    assert abs(stats.slope_share(rng.normal(1, 0.02, 4000))) < 0.01


def test_a_difference_must_be_clear_of_the_wider_interval_too() -> None:
    ratio = stats.Interval(1.05, 1.01, 1.09, "")
    assert stats.verdict(ratio, 0.0) == "SLOWER"
    assert stats.verdict(ratio, 0.0, strict=stats.Interval(1.05, 0.99, 1.11, "")) == "INCONCLUSIVE"


def test_a_bootstrap_finds_the_interval_of_a_mean_and_corrects_its_bias() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 2.0, 400)
    drawn = stats.bootstrap(lambda w: w @ x / w.sum(1), len(x))
    found = stats.percentile_interval(float(x.mean()), drawn)
    half = 1.96 * x.std() / 20
    assert found.low == pytest.approx(x.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(x.mean() + half, abs=0.1 * half)
    assert len(drawn) == 1000
    assert np.array_equal(drawn, stats.bootstrap(lambda w: w @ x / w.sum(1), len(x)))
    # Replicates that lie too high by half their spread are taken back, which percentiles are not.
    biased = rng.normal(0.5, 1.0, 4000)
    shifted = stats.percentile_interval(0.0, biased)
    assert (shifted.low, shifted.high) == pytest.approx((-2.46, 1.46), abs=0.2)


def test_replicates_without_a_value_give_no_interval() -> None:
    some = stats.percentile_interval(2.0, np.array([1.0, np.nan, 2.0, np.inf, 3.0]))
    assert (some.low, some.high) == pytest.approx((1.0, 3.0), abs=0.06)
    for none in (np.array([]), np.full(5, np.nan)):
        found = stats.percentile_interval(2.0, none)
        assert found.value == 2.0
        assert math.isnan(found.low) and math.isnan(found.high)
