from __future__ import annotations

import math
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from vcompress.bench import stats
from vcompress.bench.timing import compare as subject
from vcompress.bench.timing.compare import BlockPlan, CompareEffort, compare, noise_floor
from vcompress.bench.timing.inputs import synthetic
from vcompress.bench.timing.measure import Effort

FAST = CompareEffort(
    quads=6, floor_quads=6, block_seconds=0.02, block_runs=10, seconds=0.5,
    warmup=Effort(warmup_seconds=0.02, warmup_runs=5, most_warmup_seconds=0.02),
)  # fmt: skip


def run(busy: Any, a_us: float, b_us: float) -> subject.Comparison:
    a, b, again = busy(a_us), busy(b_us), busy(a_us)
    feed = synthetic(a.inputs, {"x": (1, 2)})
    return compare(a, feed, b, feed, again, FAST)


def test_a_slower_model_is_found_with_its_ratio(busy: Any) -> None:
    found = run(busy, 500, 600)
    assert found.verdict == "SLOWER"
    assert found.ratio.value == pytest.approx(1.2, rel=0.05)
    assert found.a.median_ms == pytest.approx(0.5, rel=0.1)
    assert found.b.median_ms == pytest.approx(0.6, rel=0.1)


def test_a_faster_model_is_found(busy: Any) -> None:
    assert run(busy, 600, 400).verdict == "FASTER"


def test_the_same_model_is_no_faster_and_no_slower(busy: Any) -> None:
    assert run(busy, 500, 500).verdict in ("EQUIVALENT", "INCONCLUSIVE")


def test_blocks_run_in_the_order_abba_and_baab(busy: Any) -> None:
    found = run(busy, 500, 500)
    runs = found.blocks
    starts = sorted(
        [(r.starts_ns[0], "A") for r in runs.first_runs]
        + [(r.starts_ns[0], "B") for r in runs.second_runs]
    )
    assert "".join(name for _, name in starts[:8]) == "ABBABAAB"
    assert found.a.blocks == tuple(len(r.samples_ns) for r in runs.first_runs)


class Simulated:
    """A ring whose blocks take what a noisy machine makes of them, in no time."""

    def __init__(self, machine: Machine, level: float) -> None:
        self.machine, self.level = machine, level

    def spin(self, duration_ns: int, least: int) -> tuple[list[int], list[int]]:
        n = max(least, 25 if duration_ns else 0)
        return self.machine.block(n, self.level)


class Machine:
    """1 % noise, a drift, and a background load that comes and goes."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.now, self.loaded = 0.0, False
        self.drift = self.rng.normal(0, 0.001)

    def block(self, n: int, level: float) -> tuple[list[int], list[int]]:
        if self.rng.random() < 0.15:
            self.loaded = not self.loaded
        speed = math.exp(self.drift * self.now) * (1.15 if self.loaded else 1.0)
        # A block has an error of its own that more runs do not average away.
        speed *= math.exp(self.rng.normal(0, 0.01))
        times = 1e6 * level * speed * np.exp(self.rng.normal(0, 0.01, n))
        self.now += 1
        return [0] * n, [int(t) for t in times]


def simulate(seed: int, effect: float) -> stats.Verdict:
    machine = Machine(seed)
    settings = {"precision": math.inf, "plan": subject.BlockPlan(3, 20, 0.1)}
    a, b = Simulated(machine, 1.0), Simulated(machine, 1.0 + effect)
    floor = subject.interleave(a, a, quads=10, seconds=0, **settings)  # type: ignore[arg-type]
    blocks = subject.interleave(a, b, quads=20, seconds=0, **settings)  # type: ignore[arg-type]
    return stats.verdict(blocks.ratio(), noise_floor(floor.ratio()), strict=blocks.ratio(0.99))


def test_at_most_five_in_a_hundred_simulated_a_a_runs_cry_wolf() -> None:
    verdicts = [simulate(seed, 0.0) for seed in range(200)]
    assert sum(v in ("FASTER", "SLOWER") for v in verdicts) <= 0.05 * 200


def test_a_simulated_slowdown_of_a_tenth_is_found_in_spite_of_the_load() -> None:
    verdicts = [simulate(seed, 0.15) for seed in range(50)]
    assert verdicts.count("SLOWER") >= 40
    assert verdicts.count("FASTER") == 0


def test_the_noise_floor_is_the_widest_bound_of_the_a_a_interval() -> None:
    assert noise_floor(stats.Interval(1, 0.9, 1.05, "")) == pytest.approx(-math.log(0.9))


@pytest.mark.parametrize(
    ("pair_ms", "plan"),
    [
        (0.2, BlockPlan(3, 5, 0.02)),  # fast models keep the protocol's blocks
        (100.0, BlockPlan(1, 3, 0.0)),  # four runs of each in a block
        (550.0, BlockPlan(0, 1, 0.0)),  # the models of a quarter of a second
    ],
)
def test_blocks_are_as_short_as_the_time_asks(pair_ms: float, plan: BlockPlan) -> None:
    assert BlockPlan.of(pair_ms, CompareEffort(), 8.0, 10) == plan


def test_a_time_limit_is_kept_and_too_few_quads_give_no_verdict(busy: Any) -> None:
    effort = CompareEffort(
        seconds=0.5, floor_seconds=0.25, least_quads=1,
        warmup=Effort(warmup_seconds=0.1, warmup_runs=1, most_warmup_seconds=0.1),
    )  # fmt: skip
    a, b = busy(60_000), busy(90_000)
    feed = synthetic(a.inputs, {"x": (1, 2)})
    begin = perf_counter()
    found = compare(a, feed, b, feed, busy(60_000), effort)
    assert perf_counter() - begin < 4  # with the looks and the warm-ups; 10 quads of 8 runs: 48 s
    assert 1 <= len(found.blocks.first) < 5
    assert found.ratio.value == pytest.approx(1.5, rel=0.2)
    assert found.verdict == "INCONCLUSIVE"
    assert not found.ratio.carries
