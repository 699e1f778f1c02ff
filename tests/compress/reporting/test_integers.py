"""What runs in integers, in the words of the table and the report."""

from __future__ import annotations

from typing import Any

import pytest

from vcompress.bench.bundle.history import Entry, Metrics
from vcompress.compress.reporting.integers import integer_lines, integer_text


def entry(found: Any) -> Entry:
    metrics = Metrics(
        test=None, parameters=1, macs=1, onnx_bytes=1, latency=None, export={"integers": found}
    )
    return Entry(stage="quantize", model="net", details={}, metrics=metrics)


def test_layers_in_floating_point_are_named() -> None:
    blamed = {f"c{n}": "Pad stands before it" for n in range(7)}
    text = integer_text(entry({"meant": 9, "integer": 2, "float_layers": blamed}))
    assert text is not None
    assert text.startswith("2 of 9 layers run in integers; in floating point: c0 (Pad stands")
    assert text.endswith("c4 (Pad stands before it), and 2 more")
    assert integer_lines([entry({"meant": 3, "integer": 3, "float_layers": {}})]) == [
        "quantize: 3 of 3 layers run in integers"
    ]


@pytest.mark.parametrize("found", [None, 3, {"meant": "3"}, {"meant": 3, "integer": 3}])
def test_what_is_none_of_ours_is_left_out(found: Any) -> None:
    assert integer_text(entry(found)) is None
    assert integer_lines([entry(found)]) == []
