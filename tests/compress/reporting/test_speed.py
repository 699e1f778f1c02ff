"""Int8 that is not faster than float is said first, with what is to blame."""

from __future__ import annotations

import pytest

from vcompress.bench.bundle.history import Entry, to_json
from vcompress.compress.reporting.speed import Speed, speed_lines, speed_of, text_of

SLOW = Speed(
    0.57, 0.56, 0.58, 2.98, 5.68, "SLOWER", "onnxruntime", 1,
    {"Conv": 2.6, "DequantizeLinear": 0.71, "QuantizeLinear": 0.5, "layout": 0.3},
)  # fmt: skip
FAST = Speed(2.31, 2.25, 2.36, 4.0, 1.73, "FASTER", "onnxruntime", 2)


def entry(stage: str, speed: object) -> Entry:
    return Entry(stage=stage, model="net", details={"speed": speed})


def test_a_slower_file_names_operators_and_what_to_do() -> None:
    assert text_of(SLOW) == (
        "int8 is not faster than float: 0.57 times as fast (0.56 to 0.58), 5.68 against 2.98 ms, "
        "interleaved in ONNX Runtime, 1 thread. It spends more on Conv (+2.6 ms), "
        "DequantizeLinear (+0.71 ms), QuantizeLinear (+0.5 ms). Ship the float file for this "
        "machine, or leave more of the network in floating point (--keep-float)"
    )


def test_a_faster_file_says_how_much() -> None:
    assert text_of(FAST) == (
        "int8 is 2.31 times as fast (2.25 to 2.36), 1.73 against 4 ms, interleaved in "
        "ONNX Runtime, 2 threads"
    )


def test_what_is_not_faster_stands_first() -> None:
    history = [entry("a", to_json(FAST)), entry("b", to_json(SLOW))]
    lines = speed_lines(history)
    assert [line[:2] for line in lines] == ["b:", "a:"]
    assert speed_of(history[1]) == SLOW


@pytest.mark.parametrize("record", [None, 3, {"faster": "much"}])
def test_a_record_that_is_none_of_ours_is_passed_over(record: object) -> None:
    assert speed_lines([entry("a", record)]) == []
