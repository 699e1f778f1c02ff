from __future__ import annotations

from time import sleep
from typing import Any

import pytest

from vcompress.bench.errors import UserError
from vcompress.bench.timing import traffic
from vcompress.bench.timing.inputs import synthetic


@pytest.fixture
def sleeper(busy: Any) -> Any:
    """A model that waits 5 ms without holding the interpreter, as a real one would."""

    class Sleeper(busy):  # type: ignore[misc]
        def prepare(self, inputs: Any) -> Any:
            return lambda: sleep(0.005)

    return Sleeper()


def test_throughput_is_measured_and_is_not_one_over_the_latency(sleeper: Any) -> None:
    feed = synthetic(sleeper.inputs, {"x": (4, 2)})
    one = traffic.throughput(sleeper, feed, 1, seconds=0.6)
    four = traffic.throughput(sleeper, feed, 4, seconds=0.6)
    assert one.images_per_second == pytest.approx(4 / 0.005, rel=0.3)
    assert four.images_per_second > 2.5 * one.images_per_second
    assert four.latency_ms == pytest.approx(5, rel=0.4)
    assert one.interval[0] <= one.images_per_second <= one.interval[1] * 1.1


def test_an_open_loop_that_keeps_up_answers_in_about_the_service_time(sleeper: Any) -> None:
    feed = synthetic(sleeper.inputs, {"x": (1, 2)})
    found = traffic.open_loop(sleeper, feed, 40, seconds=2.0)
    assert found.kept_up
    assert found.requests == pytest.approx(80, abs=40)
    p50 = found.response_ms["p50"]
    assert p50 is not None
    assert 5 <= p50 < 12
    assert found.response_ms["p99.9"] is None


def test_an_open_loop_above_what_the_model_serves_says_so_and_ends(sleeper: Any) -> None:
    feed = synthetic(sleeper.inputs, {"x": (1, 2)})
    found = traffic.open_loop(sleeper, feed, 1000, seconds=0.5)
    assert not found.kept_up
    p50 = found.response_ms["p50"]
    assert p50 is not None
    assert p50 > 50  # the queue is in the response time


def test_a_runtime_that_takes_one_call_at_a_time_refuses_concurrency(busy: Any) -> None:
    session = busy()
    session.thread_safe = False
    with pytest.raises(UserError, match="one call at a time"):
        traffic.throughput(session, synthetic(session.inputs, {"x": (1, 2)}), 2)


def test_a_fault_under_load_is_one_error(busy: Any) -> None:
    class Faulty(busy):  # type: ignore[misc]
        def prepare(self, inputs: Any) -> Any:
            return lambda: 1 / 0

    session = Faulty()
    with pytest.raises(UserError, match="failed under load"):
        traffic.throughput(session, synthetic(session.inputs, {"x": (1, 2)}), 2, seconds=0.2)
