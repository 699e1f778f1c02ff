"""The history: read, checked, written again, with nothing lost."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from vcompress.bench.bundle import Bundle, InputSpec, Preprocess, create
from vcompress.bench.bundle.history import (
    Entry,
    Latency,
    Licences,
    Metrics,
    MetricValue,
    Robustness,
    TestScore,
    measured,
    read,
    to_json,
)
from vcompress.bench.errors import UserError

OLD: dict[str, Any] = {
    "stage": "finetune", "model": "r18", "config": {"lr": 0.1, "part": [0.0, 1.0]},
    "options": {"data": None}, "seed": 3, "started": "2026-11-21T10:00:00+00:00",
    "versions": {"torch": "2.9.0"}, "inputs": {"model": {"name": "r18"}},
    "licences": {"data": "CC0-1.0", "weights": "unknown"}, "seconds": 12.5,
    "details": {"epochs": 3},
    "metrics": {
        "test": {"n": 40, "correct": 30, "top1": 0.75, "interval": [0.6, 0.86]},
        "parameters": 100, "macs": 2000, "onnx_bytes": 4096,
        "latency": {
            "median_ms": 2, "low_ms": 1.9, "high_ms": 2.25, "batch": 1, "threads": 1,
            "steady": True, "provider": "CPUExecutionProvider", "cpu": "a processor",
        },
        "parity": {"ok": True}, "export": {"opset": 20},
        "robustness": {
            "n": 4, "clean": 0.75, "pgd": 0.25, "epsilon": 0.03, "steps": 10,
            "corruptions": {"noise": [0.5, 0.25]}, "mean_corrupted": 0.375,
        },
    },
    "bad_images": {"count": 1, "named": ["a.png"]},
}  # fmt: skip
"""As schema 1 was written before it knew of other tasks."""


def changed(path: str, value: Any) -> dict[str, Any]:
    entry: Any = deepcopy(OLD)
    *way, last = path.split(".")
    inner = entry
    for key in way:
        inner = inner[key]
    inner[last] = value
    return dict(entry)


def test_an_entry_of_before_is_read_as_one_of_top_1() -> None:
    (entry,) = read([OLD])
    assert (entry.stage, entry.model, entry.seed, entry.seconds) == ("finetune", "r18", 3, 12.5)
    assert entry.licences == Licences("CC0-1.0", "unknown")
    assert entry.config == {"lr": 0.1, "part": [0.0, 1.0]}
    assert entry.task is None
    found = entry.metrics
    assert found is not None
    assert found.test == TestScore("top1", 0.75, (0.6, 0.86), 40, correct=30)
    assert found.latency == Latency(
        2.0, 1.9, 2.25, 1, 1, True, "CPUExecutionProvider", "a processor"
    )
    assert isinstance(found.latency.median_ms, float)
    assert found.robustness == Robustness(4, 0.75, 0.25, 0.03, 10, {"noise": (0.5, 0.25)}, 0.375)
    assert (found.parity_openvino, found.sparsity) == (None, None)


def test_what_is_read_is_written_again_and_older_readers_find_top_1() -> None:
    written = to_json(read([OLD]))
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    test = written[0]["metrics"]["test"]
    assert test == {
        "metric": "top1", "value": 0.75, "interval": [0.6, 0.86], "n": 40, "correct": 30,
        "top1": 0.75, "runtime": "onnxruntime",
    }  # fmt: skip
    written[0]["metrics"]["test"] = OLD["metrics"]["test"]
    for measured_there in ("latency", "robustness"):
        assert written[0]["metrics"][measured_there].pop("runtime") == "onnxruntime"
    assert written[0]["metrics"]["robustness"].pop("metric") == "top1"
    assert written == [OLD]
    assert read(to_json(read([OLD]))) == read([OLD])


def test_a_score_of_another_task_has_further_metrics_and_no_top_1() -> None:
    score = TestScore("mAP", 0.5, (0.4, 0.6), 40, {"f1": MetricValue(0.7, 0.65, 0.75)})
    entry = Entry("finetune", "r18", task="multilabel", metrics=Metrics(score, 1, 2, 3, None))
    (written,) = to_json([entry])
    assert written["metrics"]["test"] == {
        "metric": "mAP", "value": 0.5, "interval": [0.4, 0.6], "n": 40,
        "values": {"f1": {"value": 0.7, "low": 0.65, "high": 0.75}}, "runtime": "onnxruntime",
    }  # fmt: skip
    assert read([written]) == (entry,)


def test_what_was_not_measured_is_written_and_what_says_nothing_is_not() -> None:
    entry = Entry("import", "m", metrics=Metrics(None, 1, 2, 3, None))
    assert to_json(entry) == {
        "stage": "import", "model": "m",
        "metrics": {"test": None, "parameters": 1, "macs": 2, "onnx_bytes": 3, "latency": None},
    }  # fmt: skip


@pytest.mark.parametrize(
    "place", ["", "licences", "metrics", "metrics.test", "metrics.latency", "metrics.robustness"]
)
@pytest.mark.parametrize("key", ["newer", "extra"])
def test_what_a_newer_version_says_is_kept_at_every_level(
    tmp_path: Path, place: str, key: str
) -> None:
    entry = changed(f"{place}.{key}" if place else key, {"a": [1, None]})
    written = to_json(read([entry]))[0]
    for step in filter(None, place.split(".")):
        written = written[step]
    assert written[key] == {"a": [1, None]}
    assert read(to_json(read([entry]))) == read([entry])


def test_a_bundle_that_is_written_again_loses_nothing(tmp_path: Path) -> None:
    def write(path: Path, history: tuple[Entry, ...]) -> Bundle:
        with create(
            path, input=InputSpec("input", (3, 8, 8)), preprocess=Preprocess((8, 8)),
            labels=("a",), data=None, history=history,
        ) as folder:  # fmt: skip
            (folder / "model.onnx").write_text("model")
        return Bundle.open(path)

    newer = changed("metrics.test.calibration", 0.5)
    one = write(tmp_path / "b", read([newer, {"stage": "s", "model": "m", "mood": "good"}]))
    two = write(tmp_path / "b", one.history)
    assert two.history == one.history
    assert two.manifest == one.manifest
    assert one.manifest["history"][0]["metrics"]["test"]["calibration"] == 0.5
    assert one.manifest["history"][1] == {
        "stage": "s", "model": "m", "mood": "good", "sealed_by": "manifest.sha256"
    }  # fmt: skip
    # A stage more: the seal's name goes along to the last entry, and only there.
    three = write(tmp_path / "b", (*two.history, Entry("t", "m")))
    assert ["sealed_by" in entry for entry in three.manifest["history"]] == [False, False, True]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("stage", 5, "history[0].stage = 5, expected a text"),
        ("seed", True, "history[0].seed = True, expected a whole number"),
        ("metrics.latency.median_ms", "x", "metrics.latency.median_ms = 'x', expected a number"),
        ("metrics.latency.steady", 1, "metrics.latency.steady = 1, expected true or false"),
        ("metrics.latency.median_ms", 0, "latency.median_ms = 0.0, expected 1e-9 to 1e12"),
        ("metrics.onnx_bytes", 0, "metrics.onnx_bytes = 0, expected 1 or more"),
        ("metrics.macs", 10**400, "metrics.macs = 1000"),
        ("metrics.seconds", [], None),
        ("metrics.parameters", None, "metrics.parameters = None, expected a whole number"),
        ("metrics.test.top1", "x", "history[0].metrics.test.value = 'x', expected a number"),
        ("metrics.test.top1", 10**400, "int too large"),
        ("metrics.test.interval", [1], "metrics.test.interval = [1], expected 2 values"),
        ("metrics.test.values", {"f1": {"value": 1}}, "'history[0].metrics.test.values.f1.low' is"),
        ("metrics.robustness.corruptions", {"fog": []}, "a kind has no severities"),
        ("metrics.robustness.corruptions", {"fog": ["x"]}, "corruptions.fog[0] = 'x', expected a"),
        ("metrics.robustness", {}, "the key 'history[0].metrics.robustness.n' is missing"),
        ("inputs.model", "r18", "history[0].inputs.model = 'r18', expected a table"),
        ("versions.torch", 2, "history[0].versions.torch = 2, expected a text"),
    ],
)
def test_a_malformed_value_is_named_with_its_place(
    path: str, value: Any, message: str | None
) -> None:
    if message is None:  # not a name that is known there: kept
        assert read([changed(path, value)])
        return
    with pytest.raises(UserError) as caught:
        read([changed(path, value)], "b/manifest.json")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("key", ["stage", "model"])
def test_an_entry_needs_a_stage_and_a_model(key: str) -> None:
    entry = {k: v for k, v in OLD.items() if k != key}
    with pytest.raises(UserError, match=rf"here: the key 'history\[1\]\.{key}' is missing"):
        read([OLD, entry], "here")


@pytest.mark.parametrize("item", [None, 5, "x", [OLD]])
def test_what_is_no_table_is_no_entry(item: Any) -> None:
    with pytest.raises(UserError, match=r"history\[0\] = .*, expected a table of named values"):
        read([item])


def test_stages_that_measured_nothing_are_left_out_of_the_measured() -> None:
    history = read([{"stage": "odd", "model": "m"}, OLD])
    assert measured(history) == [(history[1], history[1].metrics)]


def test_a_prediction_reads_no_history() -> None:
    import subprocess
    import sys

    code = (
        "import sys; import vcompress.bench.device.predict; "
        "print('vcompress.bench.bundle.history' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
