"""An int8 file is timed against the float one, in turn, when its bundle is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from vcompress.bench.bundle import Bundle
from vcompress.compress.cli import main
from vcompress.compress.reporting.speed import speed_of, text_of


def test_quantize_times_both_files_in_turn(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["quantize", "--model", "runs/net", "--method", "ptq", "--trust", "tiny_nets:batch"]
    assert main([*argv, "--out", "runs/q", "--threads", "1"]) == 0
    entry = Bundle.open("runs/q").history[-1]
    speed = speed_of(entry)
    assert speed is not None
    assert entry.metrics is not None
    assert entry.metrics.latency is not None
    assert speed.int8_ms == entry.metrics.latency.median_ms
    assert speed.faster == pytest.approx(speed.float_ms / speed.int8_ms, rel=0.5)
    assert speed.faster_low <= speed.faster <= speed.faster_high
    assert (speed.runtime, speed.threads) == ("onnxruntime", 1)
    assert bool(speed.costs_more) == (speed.verdict != "FASTER")
    table = " ".join(capsys.readouterr().out.split())
    assert f"quantize: {text_of(speed)}"[:60] in table


def test_a_file_that_ships_elsewhere_is_not_held_against_float_here(work: Path) -> None:
    argv = ["quantize", "--model", "runs/net", "--method", "ptq", "--trust", "tiny_nets:batch"]
    assert main([*argv, "--target", "tensorrt", "--out", "runs/q"]) == 0
    assert "speed" not in Bundle.open("runs/q").history[-1].details
