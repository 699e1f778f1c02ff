"""Which runtime vbench measures in: the one asked for, else the one that a bundle was made for."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vcompress.bench import cli
from vcompress.bench.bundle import Bundle
from vcompress.bench.bundle.manifest import seal_of
from vcompress.bench.errors import EnvironmentLacks
from vcompress.bench.run.options import Options
from vcompress.bench.run.subject import Subject, runtime_for
from vcompress.bench.runtimes import openvino


def subject(ships_in: Any, file: str = "model.onnx") -> Subject:
    """A model whose bundle says what it was quantised for."""
    bundle: Any = SimpleNamespace(ships_in=ships_in)
    return Subject(file, Path(file), bundle)


FLOAT = subject(None)


def record_latency(folder: Path, **more: Any) -> None:
    """Write metrics into the last stage of a bundle's history."""
    manifest = json.loads((folder / "manifest.json").read_text())
    latency = {
        "median_ms": 1.0, "low_ms": 0.9, "high_ms": 1.1, "batch": 1, "threads": 1, "steady": True,
        "provider": "CPU", "cpu": "a processor", "runtime": "openvino", **more,
    }  # fmt: skip
    manifest["history"][-1]["metrics"] = {
        "test": None, "parameters": 1, "macs": 1, "onnx_bytes": 1, "latency": latency
    }  # fmt: skip
    text = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(text)
    (folder / "manifest.sha256").write_bytes(seal_of(text))


def chosen(*found: Subject, **options: Any) -> tuple[str | None, list[str]]:
    models = tuple(s.path for s in found)
    return runtime_for(Options(models=models, **options), found)


@pytest.fixture
def present(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "library", lambda: None)


@pytest.mark.usefixtures("present")
def test_a_bundle_chooses_its_runtime_for_itself_and_for_what_it_is_compared_with() -> None:
    said = "measured in openvino, which the network was quantised for; --runtime changes it"
    assert chosen(subject("openvino")) == ("openvino", [said])
    assert chosen(FLOAT, subject("openvino")) == ("openvino", [said])
    assert chosen(subject("openvino"), FLOAT) == ("openvino", [said])


@pytest.mark.usefixtures("present")
def test_what_was_asked_for_goes_before_the_bundle() -> None:
    made = subject("openvino")
    assert chosen(made, runtime="onnxruntime") == ("onnxruntime", [])
    assert chosen(made, device="cuda") == (None, [])
    name, (said,) = chosen(made, optimize=False)
    assert name is None
    assert said.endswith("--no-optimize belongs to onnxruntime; this model runs in openvino.")


@pytest.mark.usefixtures("present")
@pytest.mark.parametrize("ships_in", [None, "onnxruntime", "of-a-newer-version"])
def test_a_bundle_that_chooses_nothing_leaves_the_file_ending_to_decide(ships_in: Any) -> None:
    assert chosen(subject(ships_in)) == (None, [])
    assert chosen(Subject("m", Path("m.onnx"), None)) == (None, [])


@pytest.mark.usefixtures("present")
def test_where_the_bundle_cannot_choose_a_note_says_why() -> None:
    assert chosen(subject("openvino"), subject("onnxruntime")) == (
        None, ["quantised for onnxruntime and openvino: --runtime chooses where to measure"]
    )  # fmt: skip
    assert chosen(subject("tensorrt")) == (
        None, ["quantised for tensorrt, but not measured in it: it opens .engine, .plan, .trt"]
    )  # fmt: skip
    assert chosen(subject("tensorrt", "model.engine")) == (None, [])


def test_a_runtime_that_is_missing_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def library() -> Any:
        raise EnvironmentLacks("no openvino (simulated).")

    monkeypatch.setattr(openvino, "library", library)
    assert chosen(subject("openvino")) == (
        None,
        ["quantised for openvino, but not measured in it: no openvino (simulated)."],
    )


def test_vbench_measures_the_bundle_in_openvino(
    whole_bundle: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    assert whole_bundle(tmp_path / "q").ships_in is None
    record_latency(tmp_path / "q", ships_in="openvino")
    assert Bundle.open(tmp_path / "q").ships_in == "openvino"
    saved = tmp_path / "r.json"
    argv = [str(tmp_path / "q"), "--threads", "1", "--seconds", "0.1", "--no-cold-start"]
    assert cli.main([*argv, "--json", str(saved)]) == 0
    found = json.loads(saved.read_text())
    assert found["models"][0]["runtime"]["runtime"] == "openvino"
    assert len(found["notes"]) == 1
    assert "which the network was quantised for" in capsys.readouterr().out
