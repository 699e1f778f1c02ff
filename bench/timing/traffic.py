"""A model under load: many calls in flight, and requests that arrive at their own times."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from itertools import count
from time import perf_counter, perf_counter_ns, sleep

import numpy as np

from .. import stats
from ..apart import bounded
from ..errors import UserError
from ..runtimes.session import Session
from .inputs import Feed
from .measure import Ring, failed

SLICES = 12


def throughput(session: Session, feed: Feed, concurrency: int, seconds: float = 3.0) -> Throughput:
    """Images per second with `concurrency` calls in flight at all times.

    It is a run of its own: 1 / latency would leave out what overlaps and what gets in the way. The
    interval comes from twelve slices of the run.
    """
    _check(session, concurrency)
    calls = [session.prepare(f) for f in feed.ring]
    ends: list[list[int]] = [[] for _ in range(concurrency)]
    times: list[list[int]] = [[] for _ in range(concurrency)]
    errors: list[Exception] = []
    begin = perf_counter_ns() + int(0.3e9)  # what ends before is warm-up
    stop = begin + int(seconds * 1e9)

    def work(worker: int) -> None:
        try:
            for turn in count(worker):
                start = perf_counter_ns()
                calls[turn % len(calls)]()
                end = perf_counter_ns()
                if end > stop:
                    return
                if start >= begin:
                    ends[worker].append(end)
                    times[worker].append(end - start)
        except Exception as error:
            errors.append(error)

    _run(work, concurrency, errors, session, seconds)
    done = np.sort(np.concatenate([np.array(e, dtype=np.int64) for e in ends]))
    if len(done) < SLICES:
        raise UserError(
            f"Only {len(done)} calls ended within {seconds:g} s; give --seconds more for a rate."
        )
    edges = np.linspace(begin, stop, SLICES + 1)
    rates = np.histogram(done, edges)[0] * feed.batch / (seconds / SLICES)
    found = stats.walsh_interval(rates)
    return Throughput(
        images_per_second=len(done) * feed.batch / seconds, interval=(found.low, found.high),
        concurrency=concurrency, batch=feed.batch, seconds=seconds,
        latency_ms=float(np.median(np.concatenate([np.array(t) for t in times]))) / 1e6,
    )  # fmt: skip


def open_loop(
    session: Session, feed: Feed, rate_hz: float, concurrency: int = 1, seconds: float = 5.0,
    seed: int = 0,
) -> OpenLoop:  # fmt: skip
    """Poisson arrivals at `rate_hz`; the response time runs from the arrival to the answer.

    A closed loop waits for the model before it asks again, and so hides the queue that real
    requests stand in ("coordinated omission").
    """
    _check(session, concurrency)
    if rate_hz <= 0:
        raise UserError(f"--rate {rate_hz:g}: it must be above 0.")
    calls = [session.prepare(f) for f in feed.ring]
    gaps = np.random.default_rng(seed).exponential(
        1 / rate_hz, size=max(int(rate_hz * seconds * 2) + 20, 20)
    )
    arrivals = np.cumsum(gaps)
    arrivals = arrivals[arrivals <= seconds]
    if len(arrivals) == 0:
        raise UserError(f"--rate {rate_hz:g}: no request arrives within {seconds:g} s.")
    ends = np.full(len(arrivals), np.nan)
    turns, lock, errors = count(), threading.Lock(), list[Exception]()
    Ring(session, feed).spin(0, 5)
    begin = perf_counter()

    def work(worker: int) -> None:
        try:
            while True:
                with lock:
                    turn = next(turns)
                if turn >= len(arrivals) or perf_counter() - begin > 2 * seconds:
                    return
                due = begin + arrivals[turn]
                while (wait := due - perf_counter()) > 0:
                    if wait > 0.002:
                        sleep(wait - 0.001)  # the last millisecond is spun: sleep is late
                calls[turn % len(calls)]()
                ends[turn] = perf_counter() - begin
        except Exception as error:
            errors.append(error)

    _run(work, concurrency, errors, session, 2 * seconds)
    served = ~np.isnan(ends)
    response = (ends - arrivals)[served] * 1e3
    # The backlog is what had arrived and was not done when the last request came.
    backlog = int(len(arrivals) - (ends[served] <= arrivals[-1]).sum())
    percentiles = {
        name: float(np.quantile(response, q)) if stats.supported(len(response), q) else None
        for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999))
    }
    return OpenLoop(
        rate_hz=rate_hz, served_hz=float(served.sum() / max(np.nanmax(ends), 1e-9)),
        requests=len(arrivals), response_ms=percentiles,
        kept_up=bool(served.all()) and backlog <= max(10, 0.05 * len(arrivals)),
    )  # fmt: skip


def _check(session: Session, concurrency: int) -> None:
    if concurrency < 1:
        raise UserError(f"--concurrency {concurrency}: it must be 1 or more.")
    if concurrency > 1 and not session.thread_safe:
        raise UserError(
            f"{session.facts.runtime} takes one call at a time here; --concurrency must be 1."
        )


def _run(
    work: object, concurrency: int, errors: list[Exception], session: Session, seconds: float
) -> None:
    assert callable(work)
    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(concurrency)]
    with bounded(seconds):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise failed(session.path, "under load", errors[0]) from None


@dataclass(frozen=True)
class Throughput:
    """A run of its own: many calls in flight."""

    images_per_second: float
    interval: tuple[float, float]
    """95 %, from one-second slices."""
    concurrency: int
    batch: int
    seconds: float
    latency_ms: float
    """Median latency of one call under this load."""


@dataclass(frozen=True)
class OpenLoop:
    """Requests that arrive at random times at a given rate, whether the model is ready or not."""

    rate_hz: float
    served_hz: float
    requests: int
    response_ms: dict[str, float | None]
    """Percentiles of the time from arrival to answer, waiting included; None is withheld."""
    kept_up: bool
    """Whether the backlog stayed bounded."""
