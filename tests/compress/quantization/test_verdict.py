"""The verdict over FP32 and INT8: its rule, its measurement, its words."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from vcompress.bench.bundle import Bundle
from vcompress.bench.bundle.history import Entry, to_json
from vcompress.bench.errors import UserError
from vcompress.bench.timing.compare import CompareEffort
from vcompress.compress.cli import main
from vcompress.compress.quantization import verdict
from vcompress.compress.quantization.verdict import decide
from vcompress.compress.reporting.verdict import (
    Candidate,
    Verdict,
    read,
    sentences,
    verdict_section,
)
from vcompress.compress.stages import quantize


@pytest.mark.parametrize(
    ("low", "high", "lost", "word"),
    [
        (1.5, 2.0, 0.3, "quantise"),
        (1.1, 1.2, 0.5, "quantise"),
        (1.5, 2.0, 0.6, "do not quantise"),
        (0.8, 1.05, -0.2, "do not quantise"),
        (1.05, 1.3, 0.0, "cannot tell"),
    ],
)
def test_int8_must_be_clearly_faster_and_lose_little(
    low: float, high: float, lost: float, word: str
) -> None:
    assert decide(low, high, lost, max_drop=0.5)[0] == word


def test_a_target_that_cannot_be_measured_here_is_refused_before_anything_runs() -> None:
    with pytest.raises(UserError, match=r"target is tensorrt.*vbench float.engine int8.engine"):
        quantize.Config(target="tensorrt", verdict=True)


def test_the_command_measures_both_files_and_keeps_the_verdict(
    work: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    brief = CompareEffort(quads=2, floor_quads=2, floor_seconds=0.05, seconds=0.2)
    short = replace(brief.warmup, warmup_seconds=0.02, most_warmup_seconds=0.05)
    monkeypatch.setattr(verdict, "EFFORT", replace(brief, warmup=short))
    command = ["quantize", "--model", "runs/net", "--method", "ptq", "--calibration-images", "8"]
    with caplog.at_level(logging.INFO):
        assert main([*command, "--verdict", "--trust", "tiny_nets:batch", "--out", "runs/q"]) == 0
    bundle = Bundle.open("runs/q")
    (float_entry, entry) = bundle.history
    found = entry.details["verdict"]
    fp32, int8 = found["candidates"]
    assert (fp32["precision"], int8["precision"]) == ("fp32", "int8")
    assert (fp32["images"], int8["images"]) == (12, 12)
    assert fp32["value"] == float_entry.metrics.test.value
    assert int8["value"] == entry.metrics.test.value
    # The bundle's file says besides what it is and how it came to be.
    assert 0 < entry.metrics.onnx_bytes - int8["size_bytes"] < 1500
    assert fp32["median_ms"] > 0 < int8["median_ms"]
    assert found["faster_low"] <= found["faster"] <= found["faster_high"]
    word = decide(found["faster_low"], found["faster_high"], found["lost_points"], 0.5)[0]
    assert found["word"] == word
    assert "no float16 convolutions" in found["not_tried"]["fp16"]
    assert "for this target" in caplog.text
    page = bundle.file("report.html").read_text(encoding="utf-8")
    assert "<h2>Verdict</h2>" in page
    assert sentences(read(found))[-1].split(" on ")[0] in page


def test_a_refusal_gives_its_numbers() -> None:
    candidates = (
        Candidate("fp32", "top1", 0.9, 100, 2.0, 4_000_000),
        Candidate("int8", "top1", 0.88, 100, 1.0, 1_000_000),
    )
    word, reason = decide(1.8, 2.2, 2.0, 0.5)
    found = Verdict(word, reason, "onnxruntime", "a CPU", 2.0, 1.8, 2.2, 2.0, 0.5, candidates, {})
    assert read(to_json(found)) == found
    lines = sentences(found)
    assert lines[0] == "fp32: top-1 90.00 % on 100 images, 2 ms, 4.00 MB"
    assert lines[-1] == (
        "verdict for onnxruntime on a CPU: do not quantise this model for this target: it loses "
        "2.00 points, more than 0.5 (int8 is 2.00 times faster, 1.80 to 2.20 at 99 %)."
    )
    assert verdict_section([Entry("s", "m")]) == []
