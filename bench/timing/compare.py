"""Two models measured interleaved, so that a drift of the machine hits both."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

from .. import stats
from ..runtimes.session import Session
from .inputs import Feed
from .measure import (
    LOOK_SECONDS,
    Effort,
    Look,
    Measurement,
    Ring,
    Warmup,
    look,
    no_collection,
    warm_up,
)

Progress = Callable[[str, float], None]
DROPPED = 3  # runs at the head of a block: the other model has just had the caches


@dataclass(frozen=True)
class BlockPlan:
    """How long a block of one model is."""

    dropped: int
    """Runs at its head that are not kept."""
    runs: int
    """Least number of runs that are kept."""
    seconds: float

    @classmethod
    def of(cls, pair_ms: float, effort: CompareEffort, seconds: float, quads: int) -> BlockPlan:
        """Blocks of which `quads` quads fit into `seconds`, where the models allow it.

        Args:
            pair_ms: one run of each model, ms.
        """
        fit = seconds * 1e3 / (2 * quads * pair_ms)  # runs of each model in a block
        if fit >= DROPPED + effort.block_runs:
            spare = seconds / (4 * quads) - DROPPED * pair_ms / 2e3
            return cls(DROPPED, effort.block_runs, min(effort.block_seconds, spare))
        runs = max(int(fit), 1)
        dropped = min(DROPPED, runs // 3)
        return cls(dropped, runs - dropped, 0.0)


@dataclass(frozen=True, kw_only=True)
class CompareEffort:
    """Blocks of A B B A. Two quads make four of the protocol's pairs."""

    quads: int = 10
    """Least number of quads; a quad holds two pairs."""
    floor_quads: int = 10
    """Least number of quads of the A/A run."""
    floor_seconds: float = 4.0
    """Longest duration of the A/A run, seconds, where its interval stays wide."""
    block_seconds: float = 0.02
    """Short, so that the noise of a shared machine hits both models alike: in one run of 6 s
    each, blocks of 100 ms knew the ratio to 1.3 to 3.9 %, blocks of 20 ms to 0.6 %."""
    block_runs: int = 5
    least_quads: int = 6
    """Quads that run however long they take: six make an interval of 97 %."""
    seconds: float = 8.0
    """Quads go on until the interval is narrow or this is spent, A/A and warm-up apart. Models too
    slow for `quads` of them have shorter blocks, down to one run, and then fewer quads."""
    precision: float = 0.004
    """Half the interval of the ratio that ends the run."""
    margin: float = 0.01
    """What counts as the same speed."""
    warmup: Effort = field(
        default_factory=lambda: Effort(warmup_seconds=0.5, most_warmup_seconds=1.5)
    )


@dataclass(frozen=True)
class Block:
    """One model's runs without a break, the first three left out."""

    starts_ns: NDArray[np.int64]
    """[N] by `perf_counter_ns`."""
    samples_ns: NDArray[np.int64]
    """[N]"""


@dataclass(frozen=True)
class Blocks:
    """Interleaved blocks of two models."""

    first: NDArray[np.float64]
    """[Q, 2] medians in ns of the first model's two blocks of each quad, in the order they ran."""
    second: NDArray[np.float64]
    """[Q, 2]"""
    first_runs: tuple[Block, ...]
    second_runs: tuple[Block, ...]

    def ratio(self, confidence: float = 0.95) -> stats.Interval:
        return stats.ratio_interval(self.first, self.second, confidence)

    def ratios(self) -> NDArray[np.float64]:
        """[Q] ratio of each quad."""
        found: NDArray[np.float64] = np.exp(
            (np.log(self.second).sum(1) - np.log(self.first).sum(1)) / 2
        )
        return found


@dataclass(frozen=True)
class Comparison:
    """B against A; a ratio below 1 says that B is faster."""

    blocks: Blocks
    a: Measurement
    b: Measurement
    """The interleaved runs of each model."""
    ratio: stats.Interval
    ratio_99: stats.Interval
    """The 99 % interval: FASTER and SLOWER need 1 outside of it."""
    floor_blocks: Blocks
    floor_ratio: stats.Interval
    """A against a second session of A, measured in the same way."""
    floor: float
    """Largest |log ratio| inside the A/A interval: no smaller effect is reported."""
    verdict: stats.Verdict
    margin: float
    seconds: float


def interleave(
    first: Ring,
    second: Ring,
    *,
    quads: int,
    seconds: float,
    precision: float,
    plan: BlockPlan,
    least: int | None = None,
) -> Blocks:
    """Run quads, A B B A and B A A B in turn, until the ratio is known to `precision`.

    The run stops on the width of the interval and never on where it lies, so looking at it does
    not raise the rate of false alarms.

    Args:
        quads: least number of them; `least` are enough where the time is up.
    """
    least = quads if least is None else least
    medians: tuple[list[list[float]], list[list[float]]] = ([], [])
    runs: tuple[list[Block], list[Block]] = ([], [])
    rings, begin, done = (first, second), perf_counter_ns(), 0
    while True:
        found: tuple[list[float], list[float]] = ([], [])
        for which in (0, 1, 1, 0) if done % 2 == 0 else (1, 0, 0, 1):
            if plan.dropped:
                rings[which].spin(0, plan.dropped)
            starts, times = rings[which].spin(int(plan.seconds * 1e9), plan.runs)
            found[which].append(float(np.median(times)))
            runs[which].append(Block(np.array(starts), np.array(times)))
        for which in (0, 1):
            medians[which].append(found[which])
        done += 1
        spent = (perf_counter_ns() - begin) / 1e9
        if done < (least if spent >= seconds else quads):
            continue
        blocks = Blocks(np.array(medians[0]), np.array(medians[1]), (), ())
        if spent >= seconds or blocks.ratio().half_width <= precision:
            return Blocks(blocks.first, blocks.second, tuple(runs[0]), tuple(runs[1]))


def compare(
    a: Session,
    feed_a: Feed,
    b: Session,
    feed_b: Feed,
    again: Session,
    effort: CompareEffort | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Time B against A, and A against `again`, a second session of A's file, for the floor."""
    effort = effort or CompareEffort()
    tell = progress or (lambda text, share: None)
    begin = perf_counter_ns()
    seen = [look(s, f, LOOK_SECONDS) for s, f in ((a, feed_a), (b, feed_b), (again, feed_a))]
    ring_a, ring_b, ring_again = Ring(a, feed_a), Ring(b, feed_b), Ring(again, feed_a)
    with no_collection():
        tell("warm-up", 0.0)
        warmups = [warm_up(ring, effort.warmup) for ring in (ring_a, ring_b, ring_again)]
        run_ms = [w.windows_ms[-1] for w in warmups]
        tell("A against A", 0.2)
        plan = BlockPlan.of(2 * run_ms[0], effort, effort.floor_seconds, effort.floor_quads)
        floor_blocks = interleave(
            ring_a, ring_again, quads=effort.floor_quads, seconds=effort.floor_seconds,
            precision=effort.precision, plan=plan, least=effort.least_quads,
        )  # fmt: skip
        tell("A against B", 0.5)
        plan = BlockPlan.of(run_ms[0] + run_ms[1], effort, effort.seconds, effort.quads)
        blocks = interleave(
            ring_a, ring_b, quads=effort.quads, seconds=effort.seconds,
            precision=effort.precision, plan=plan, least=effort.least_quads,
        )  # fmt: skip
    origin = int(min(blocks.first_runs[0].starts_ns[0], blocks.second_runs[0].starts_ns[0]))
    ratio, ratio_99, floor_ratio = blocks.ratio(), blocks.ratio(0.99), floor_blocks.ratio()
    floor = noise_floor(floor_ratio)
    return Comparison(
        blocks=blocks,
        a=_measurement(a, feed_a, blocks.first_runs, seen[0], warmups[0], origin),
        b=_measurement(b, feed_b, blocks.second_runs, seen[1], warmups[1], origin),
        ratio=ratio, ratio_99=ratio_99, floor_blocks=floor_blocks, floor_ratio=floor_ratio,
        floor=floor,
        verdict=stats.verdict(ratio, floor, effort.margin, ratio_99)
        if floor_ratio.carries else "INCONCLUSIVE", margin=effort.margin,
        seconds=(perf_counter_ns() - begin) / 1e9,
    )  # fmt: skip


def noise_floor(again: stats.Interval) -> float:
    """Largest |log ratio| that the interval of an A/A run holds."""
    return max(abs(math.log(again.low)), abs(math.log(again.high)))


def _measurement(
    session: Session, feed: Feed, runs: tuple[Block, ...], seen: Look,
    warmup: Warmup, origin: int,
) -> Measurement:  # fmt: skip
    """The interleaved runs of one model as a measurement of its own."""
    return Measurement(
        path=session.path, facts=session.facts, shapes=feed.shapes, inputs_from=feed.source,
        ring=len(feed.ring), samples_ns=np.concatenate([r.samples_ns for r in runs]),
        starts_ns=np.concatenate([r.starts_ns for r in runs]) - origin, load_ms=session.load_ms,
        first_run_ms=seen.first_run_ms, warmup=warmup, stopped="interleaved",
        nonfinite=seen.nonfinite, blocks=tuple(len(r.samples_ns) for r in runs),
        batch=feed.batch, varying=seen.varying, doubtful=feed.doubtful,
    )  # fmt: skip
