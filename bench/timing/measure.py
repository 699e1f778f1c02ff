"""The loop and its clock.

A `Measurement` holds raw samples of `time.perf_counter_ns`, from arrays on the host to arrays on
the host unless its session's facts say otherwise. Nothing is subtracted and no sample is left out.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import stats
from ..apart import bounded
from ..errors import UserError
from ..runtimes.session import Facts, Session
from .inputs import Feed

Int64s = NDArray[np.int64]
WINDOWS = 5
WINDOW_NS = 100_000_000
WINDOW_RUNS = 5  # in a window at least, or its median is one run
AGREE = 0.01
ENOUGH_SECONDS = 1.0
LOOK_SECONDS = 0.3  # on the inputs of the ring before the warm-up


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long to measure: seconds, runs and the precision that ends it."""

    seconds: float = 2.0
    """Least duration without the warm-up."""
    most_seconds: float = 3.0
    """Longest duration, where the interval stays wide."""
    precision: float = 0.01
    """Half the 95 % interval of the median, as a share of it, that ends the run."""
    warmup_seconds: float = 1.0
    warmup_runs: int = 20
    most_warmup_seconds: float = 2.0
    enough_runs: int | None = None
    """So many end the run after `ENOUGH_SECONDS` already, where the interval is narrow: a model of
    microseconds has them, and what is computed of them takes time too."""

    @classmethod
    def quick(cls, seconds: float) -> Effort:
        """About `seconds` in all, for a search that measures many candidates."""
        return cls(
            seconds=seconds * 0.6, most_seconds=seconds * 0.6, warmup_seconds=seconds * 0.2,
            warmup_runs=3, most_warmup_seconds=seconds * 0.4,
        )  # fmt: skip

    @classmethod
    def publish(cls) -> Effort:
        """The protocol in full."""
        return cls(seconds=10.0, most_seconds=60.0, most_warmup_seconds=30.0)


@dataclass(frozen=True)
class Warmup:
    runs: int
    seconds: float
    steady: bool
    """Whether the last five windows agreed within 1 % without a slope."""
    windows_ms: tuple[float, ...]
    """Medians of the last windows."""


@dataclass(frozen=True)
class Measurement:
    """Latencies of one model in one runtime, in one process."""

    path: Path
    facts: Facts
    shapes: dict[str, tuple[int, ...]]
    inputs_from: str
    ring: int
    """How many different inputs took turns."""
    samples_ns: Int64s
    """[N] wall-clock time of each run."""
    starts_ns: Int64s
    """[N] start of each run since the first one."""
    load_ms: float
    first_run_ms: float
    warmup: Warmup
    stopped: str
    """Why the run ended: precision, or time."""
    device_ns: Int64s | None = None
    """[N] device time by events, where the runtime has them. Never called latency."""
    nonfinite: tuple[str, ...] = ()
    """Outputs that held a NaN or an infinity."""
    blocks: tuple[int, ...] = ()
    """Samples in each interleaved block or process, in order; empty for one run without a break."""
    processes: int = 1
    """Where more than one, each block is a process of its own."""
    batch: int = 1
    """Images in a call."""
    varying: tuple[str, ...] = ()
    """Outputs whose shape depends on the values of the inputs."""
    doubtful: tuple[str, ...] = ()
    """Integer inputs of random values."""

    @property
    def steady(self) -> bool:
        return self.warmup.steady

    def latency(self, q: float) -> stats.Interval | None:
        """A percentile in ms with its interval, or None where the samples do not support it."""
        if not stats.supported(len(self.samples_ns), q):
            return None
        if q not in self._tails:
            self._tails[q] = stats.quantile_interval(
                self.samples_ns / 1e6, q, correlation=self.lag1
            )
        return self._tails[q]

    @cached_property
    def lag1(self) -> float:
        """Correlation of each sample's rank with the next one's."""
        return stats.lag1(self.samples_ns)

    @cached_property
    def _tails(self) -> dict[float, stats.Interval]:
        """Percentiles that were computed; a million samples take a while."""
        return {}

    @cached_property
    def median(self) -> stats.Interval:
        """The median in ms with its 95 % interval.

        Of several processes it is the median of their medians, for what differs from one process
        to the next is most of the uncertainty.
        """
        if self.processes > 1:
            return stats.order_interval(self.block_medians_ms())
        found = self.latency(0.5)
        assert found is not None  # the median always stands
        return found

    def block_medians_ms(self) -> NDArray[np.float64]:
        """Median of each block or process in ms."""
        parts = np.split(self.samples_ns, np.cumsum(self.blocks)[:-1])
        return np.array([np.median(part) / 1e6 for part in parts])

    @property
    def median_ms(self) -> float:
        return self.median.value

    @property
    def interval_ms(self) -> tuple[float, float]:
        return self.median.low, self.median.high


@contextmanager
def no_collection() -> Iterator[None]:
    """Python's garbage collector waits: a pause of its own is not the model's."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class Ring:
    """The prepared calls, taken in turn. What is timed is one call and one clock read."""

    def __init__(self, session: Session, feed: Feed) -> None:
        self.calls: Sequence[Callable[[], object]] = [session.prepare(f) for f in feed.ring]
        self.turn = 0
        self._path, self._source = session.path, feed.source

    def spin(self, duration_ns: int, least: int) -> tuple[list[int], list[int]]:
        """Run for a duration and at least so often. Starts and durations in ns.

        Raises `UserError` where the model fails on an input.
        """
        with bounded(duration_ns / 1e9):
            return self._spin(duration_ns, least)

    def _spin(self, duration_ns: int, least: int) -> tuple[list[int], list[int]]:
        calls, count, turn, clock = self.calls, len(self.calls), self.turn, perf_counter_ns
        starts: list[int] = []
        times: list[int] = []
        end = clock() + duration_ns
        try:
            while True:
                call = calls[turn]
                start = clock()
                call()
                stop = clock()
                starts.append(start)
                times.append(stop - start)
                turn += 1
                if turn == count:
                    turn = 0
                if stop >= end and len(times) >= least:
                    break
        except Exception as error:  # the runtimes' errors have no common base
            where = f"on input {turn + 1} of {count} ({self._source})"
            raise failed(self._path, where, error) from None
        self.turn = turn
        return starts, times


def failed(path: Path, where: str, error: Exception) -> UserError:
    """What is said of a model that ran on some inputs and failed on another, `where`."""
    if isinstance(error, UserError):
        return error
    reason = " ".join(str(error).split())[:400] or type(error).__name__
    return UserError(
        f"{path}: the model failed {where}: {reason} It depends on the values: give arrays that "
        "it takes with --inputs FILE.npz, or images with --data."
    )


def warm_up(ring: Ring, effort: Effort) -> Warmup:
    """Run until five windows agree within 1 % and do not all go one way, or time is up."""
    begin = perf_counter_ns()
    runs, medians = 0, list[float]()
    while True:
        _, times = ring.spin(WINDOW_NS, 1)
        least = min(WINDOW_RUNS, effort.warmup_runs)
        if len(times) < least and perf_counter_ns() - begin < effort.most_warmup_seconds * 1e9:
            times += ring.spin(0, least - len(times))[1]
        runs += len(times)
        medians.append(float(np.median(times)))
        elapsed = (perf_counter_ns() - begin) / 1e9
        last = medians[-WINDOWS:]
        steady = len(last) == WINDOWS and is_steady(last)
        enough = runs >= effort.warmup_runs and elapsed >= effort.warmup_seconds
        if (steady and enough) or elapsed >= effort.most_warmup_seconds:
            return Warmup(runs, elapsed, steady, tuple(m / 1e6 for m in last))


def is_steady(medians: Sequence[float]) -> bool:
    """Whether windows agree within 1 % and neither rise nor fall throughout."""
    x = np.asarray(medians)
    steps = np.diff(x)
    return bool((x.max() - x.min()) <= AGREE * np.median(x)) and not (
        bool((steps > 0).all()) or bool((steps < 0).all())
    )


@dataclass(frozen=True)
class Look:
    """What the first runs say of a model, before anything is timed."""

    first_run_ms: float
    runs: int
    nonfinite: tuple[str, ...]
    """Outputs that held a NaN or an infinity."""
    varying: tuple[str, ...]
    """Outputs whose shape was not always the same."""


def look(session: Session, feed: Feed, seconds: float) -> Look:
    """Run once, then on the other inputs of the ring for at most `seconds`.

    Raises `UserError` where the model fails on one of them.
    """
    with bounded(seconds):
        return _look(session, feed, seconds)


def _look(session: Session, feed: Feed, seconds: float) -> Look:
    begin = perf_counter_ns()
    outputs = session.run(feed.ring[0])
    first_ms = (perf_counter_ns() - begin) / 1e6
    first, bad, varying, runs = _shapes(outputs), list(nonfinite(outputs)), dict[str, None](), 1
    begin = perf_counter_ns()
    for number, arrays in enumerate(feed.ring[1:], start=2):
        if perf_counter_ns() - begin + first_ms * 1e6 > seconds * 1e9:
            break
        try:
            outputs = session.run(arrays)
        except UserError as error:
            raise UserError(
                f"{error} It ran on the first of {len(feed.ring)} inputs ({feed.source}) and "
                f"failed on number {number}."
            ) from None
        runs += 1
        bad += nonfinite(outputs)
        shapes = _shapes(outputs)
        varying |= dict.fromkeys(name for name in shapes if shapes[name] != first.get(name))
    return Look(first_ms, runs, tuple(dict.fromkeys(bad)), tuple(varying))


def _shapes(outputs: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of arrays, and lengths of sequences."""
    return {name: a.shape if hasattr(a, "shape") else (len(a),) for name, a in outputs.items()}


def nonfinite(outputs: dict[str, NDArray[Any]]) -> tuple[str, ...]:
    """Names of the outputs that hold a NaN or an infinity."""
    return tuple(
        name
        for name, array in outputs.items()
        if getattr(array, "dtype", None) is not None
        and array.dtype.kind == "f"
        and not np.isfinite(array).all()
    )


def measure(session: Session, feed: Feed, effort: Effort | None = None) -> Measurement:
    """Time a model until the median's 95 % interval is narrow or the budget is spent.

    Raises `UserError` where the model does not run on the feed.
    """
    effort = effort or Effort()
    seen = look(session, feed, min(LOOK_SECONDS, effort.warmup_seconds))
    ring = Ring(session, feed)
    with no_collection():
        warmup = warm_up(ring, effort)
        warmup = replace(warmup, runs=warmup.runs + seen.runs - 1)
        session.device_times_ns()  # the warm-up's are dropped
        starts: list[int] = []
        times: list[int] = []
        begin, stopped = perf_counter_ns(), "time"
        while True:
            more_starts, more_times = ring.spin(min(int(effort.seconds * 1e9), 500_000_000), 1)
            starts += more_starts
            times += more_times
            elapsed = (perf_counter_ns() - begin) / 1e9
            many = effort.enough_runs is not None and len(times) >= effort.enough_runs
            least = min(ENOUGH_SECONDS, effort.seconds) if many else effort.seconds
            if elapsed >= least and len(times) >= stats.SUPPORT[0.9]:
                interval = stats.quantile_interval(np.asarray(times, dtype=np.float64))
                if interval.half_width <= effort.precision:
                    stopped = "precision"
                    break
            if elapsed >= effort.most_seconds:
                break
        device = session.device_times_ns()
    begun = np.asarray(starts, dtype=np.int64)
    return Measurement(
        path=session.path, facts=session.facts, shapes=feed.shapes, inputs_from=feed.source,
        ring=len(feed.ring), samples_ns=np.asarray(times, dtype=np.int64),
        starts_ns=begun - begun[0], load_ms=session.load_ms, first_run_ms=seen.first_run_ms,
        warmup=warmup, stopped=stopped, device_ns=device, nonfinite=seen.nonfinite,
        batch=feed.batch, varying=seen.varying, doubtful=feed.doubtful,
    )  # fmt: skip
