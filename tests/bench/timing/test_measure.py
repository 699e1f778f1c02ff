from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vcompress.bench.errors import UserError
from vcompress.bench.runtimes import open_session
from vcompress.bench.timing.inputs import synthetic
from vcompress.bench.timing.measure import Effort, Ring, is_steady, look, measure, nonfinite

FAST = Effort(
    seconds=0.2, most_seconds=0.3, warmup_seconds=0.05, warmup_runs=5, most_warmup_seconds=0.7
)


def test_a_model_of_known_length_is_measured_at_that_length(busy: Any) -> None:
    session = busy(500)
    m = measure(session, synthetic(session.inputs, {"x": (1, 2)}), FAST)
    assert m.median_ms == pytest.approx(0.5, rel=0.1)
    assert m.interval_ms[0] <= m.median_ms <= m.interval_ms[1]
    assert m.samples_ns.min() >= 500_000
    assert session.calls == len(m.samples_ns) + m.warmup.runs + 1


def test_samples_are_kept_in_the_order_they_ran_and_do_not_overlap(busy: Any) -> None:
    session = busy(200)
    m = measure(session, synthetic(session.inputs, {"x": (1, 2)}), FAST)
    ends = m.starts_ns + m.samples_ns
    assert m.starts_ns[0] == 0
    assert (m.starts_ns[1:] >= ends[:-1]).all()


def test_percentiles_are_withheld_until_the_samples_carry_them(busy: Any) -> None:
    session = busy(2000)
    m = measure(session, synthetic(session.inputs, {"x": (1, 2)}), FAST)
    assert 64 <= len(m.samples_ns) < 662
    assert m.latency(0.5) is not None
    assert m.latency(0.9) is not None
    assert m.latency(0.99) is None


def test_a_model_of_microseconds_is_measured_for_a_second(busy: Any) -> None:
    """Where the interval is narrow; 100,000 runs are enough in a default call."""
    effort = replace(FAST, seconds=1.6, most_seconds=1.6, precision=0.5)
    session = busy(5)
    feed = synthetic(session.inputs, {"x": (1, 2)})
    for enough, least, most in ((5_000, 0.9, 1.55), (None, 1.6, 3.0)):
        found = measure(session, feed, replace(effort, enough_runs=enough))
        assert least <= (found.starts_ns[-1] + found.samples_ns[-1]) / 1e9 < most


@pytest.mark.parametrize(
    ("medians", "steady"),
    [
        ([1.0, 1.001, 1.0, 1.002, 0.999], True),
        ([1.0, 1.001, 1.002, 1.003, 1.004], False),  # a slope
        ([1.0, 1.02, 1.0, 1.0, 1.0], False),
    ],
)
def test_steady_means_agreement_without_a_slope(medians: list[float], steady: bool) -> None:
    assert is_steady(medians) is steady


def test_a_model_that_never_settles_says_so(busy: Any) -> None:
    class Alternating(busy):
        def prepare(self, inputs):  # type: ignore[no-untyped-def]
            slow = super().prepare(inputs)

            def call() -> None:
                # Every tenth of a second another speed.
                for _ in range(1 + int(self.clock() * 10) % 3):
                    slow()

            return call

        @staticmethod
        def clock() -> float:
            from time import perf_counter

            return perf_counter()

    session = Alternating(200)
    m = measure(session, synthetic(session.inputs, {"x": (1, 2)}), FAST)
    assert not m.steady
    assert m.warmup.seconds >= FAST.most_warmup_seconds


def test_the_ring_takes_turns(busy: Any) -> None:
    seen: list[int] = []
    session = busy(0)
    ring = Ring(session, synthetic(session.inputs, {"x": (1, 2)}))
    ring.calls = [lambda i=i: seen.append(i) for i in range(3)]  # type: ignore[misc]
    ring.spin(0, 4)
    ring.spin(0, 3)
    assert seen == [0, 1, 2, 0, 1, 2, 0]
    assert all((b - a) % 3 == 1 for a, b in pairwise(seen))


def test_outputs_that_are_not_finite_are_named(models: Path) -> None:
    assert nonfinite({"a": np.array([1.0, np.nan]), "b": np.array([1]), "c": np.ones(1)}) == ("a",)
    with open_session(models / "nan.onnx", threads=1) as session:
        m = measure(session, synthetic(session.inputs, {"x": (1, 10)}), Effort.quick(0.2))
    assert m.nonfinite == ("y",)


def test_several_processes_take_their_interval_from_the_processes(busy: Any) -> None:
    session = busy(100)
    m = measure(session, synthetic(session.inputs, {"x": (1, 2)}), FAST)
    samples = np.concatenate([np.full(100, level) for level in (100, 110, 120, 130, 140)])
    m = replace(m, samples_ns=samples * 1000, blocks=(100,) * 5, processes=5)
    assert (m.median.low, m.median_ms, m.median.high) == (0.1, 0.12, 0.14)


def test_a_model_that_fails_on_a_later_input_is_one_message(busy: Any) -> None:
    class Picky(busy):  # type: ignore[misc]
        def prepare(self, inputs: Any) -> Any:
            good = super().prepare(inputs)
            bad = inputs["x"].min() < -1.8
            return (lambda: int("none")) if bad else good

        def run(self, inputs: Any) -> Any:  # does not fail, so that the loop meets it
            return {"y": np.zeros((1, 3), np.float32)}

    session = Picky(1)
    feed = synthetic(session.inputs, {"x": (1, 2)})
    number = next(i for i, f in enumerate(feed.ring) if f["x"].min() < -1.8) + 1
    assert number > 1
    with pytest.raises(UserError, match=rf"failed on input {number} of 64 .*invalid literal"):
        measure(session, feed, FAST)


def test_every_input_of_the_ring_is_looked_at(busy: Any) -> None:
    class Odd(busy):  # type: ignore[misc]
        def run(self, inputs: Any) -> Any:
            self.calls += 1
            many = int(inputs["x"][0, 0] > 0)
            return {"n": np.zeros(1 + many), "log": np.log(inputs["x"] + 2), "list": [1] * many}

    session = Odd(1)
    with np.errstate(invalid="ignore"):
        seen = look(session, synthetic(session.inputs, {"x": (1, 2)}), 10.0)
    assert seen.runs == 64
    assert seen.nonfinite == ("log",)  # one value in forty is below -2; the first is not
    assert seen.varying == ("n", "list")
    assert look(session, synthetic(session.inputs, {"x": (1, 2)}), 0.0).nonfinite == ()
