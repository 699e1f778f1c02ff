"""Asked and reached, as the table at a command's end and the report say it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vcompress.bench.bundle import Bundle
from vcompress.bench.bundle.history import Entry, read, to_json
from vcompress.compress.reporting import terminal
from vcompress.compress.reporting.budget import asked_and_reached
from vcompress.compress.reporting.page import render

METRICS = {
    "test": None, "parameters": 1_000_000, "macs": 500_000, "onnx_bytes": 2_994_000,
    "latency": {"median_ms": 1.0, "low_ms": 0.9, "high_ms": 1.1, "steady": True,
                "threads": 1, "batch": 1,
                "provider": "CPUExecutionProvider", "cpu": "a processor"},
}  # fmt: skip


def pruned(**details: Any) -> Entry:
    entry = {"stage": "prune", "model": "r18", "metrics": METRICS, "details": details}
    return read([entry])[0]


@pytest.mark.parametrize(
    ("details", "text"),
    [
        ({"asked": {"macs": 0.5}, "achieved": {"macs": 0.49994}},
         "asked macs<=0.5, reached 0.4999"),
        ({"asked": {"macs": 2e6}, "after": {"macs": 1_999_872}},
         "asked macs<=2000000, reached 1999872"),
        ({"asked": {"latency": 0.5}, "achieved": {"latency": 0.5172}},
         "asked latency<=0.5, reached 0.5172"),
        ({"asked": {"latency_ms": 4.0}, "latency_measured_ms": 3.9876},
         "asked latency_ms<=4, reached 3.988"),
        ({"asked": {"size_mb": 3.0}, "size_measured_mb": 2.9}, "asked size_mb<=3, reached 2.994"),
        ({"asked": {}}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_a_stage_says_what_it_was_asked_and_what_it_reached(
    details: dict[str, Any], text: str | None
) -> None:
    assert asked_and_reached(pruned(**details)) == text


@pytest.mark.parametrize(
    "details",
    [
        {"asked": {"macs": "<b>"}}, {"asked": {"\x1b[2J": 1}}, {"asked": 5},
        {"asked": {"macs": 0.5}},
        {"asked": {"macs": 0.5}, "achieved": 3}, {"asked": {"macs": 9}, "after": {"macs": "x"}},
        {"asked": {"macs": 9}, "after": {"macs": float("inf")}},
    ],
)  # fmt: skip
def test_a_history_that_is_not_ours_says_nothing(details: Any) -> None:
    assert asked_and_reached(pruned(**details)) is None
    assert asked_and_reached(Entry("prune", "r18")) is None


def test_table_and_report_show_asked_and_reached(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = pruned(asked={"macs": 0.5}, achieved={"macs": 0.49994})
    assert "<small>asked macs&lt;=0.5, reached 0.4999</small>" in render([entry], None)
    bundle = replace(Bundle.open(made / "runs" / "net"), manifest={"history": to_json([entry])})
    terminal.print_history(bundle)
    assert "prune: asked macs<=0.5, reached 0.4999" in capsys.readouterr().out
