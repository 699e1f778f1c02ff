"""What was quantised for a runtime is measured in it, and the record says where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vcompress.bench.bundle import Bundle, InputSpec
from vcompress.bench.bundle.history import measured
from vcompress.bench.errors import EnvironmentLacks
from vcompress.bench.runtimes import open_session, openvino
from vcompress.bench.verify import verify
from vcompress.compress import quantization as q
from vcompress.compress.cli import main
from vcompress.compress.delivery.reexport import export_bundle
from vcompress.compress.pipeline import measure
from vcompress.compress.pipeline.measure import ONNX_RUNTIME, Runtime, latency, runtime_of, score
from vcompress.compress.reporting.terminal import rows
from vcompress.export.onnx_export import export


@pytest.fixture
def quantised(
    tiny_data: Callable[..., Any], tiny_nets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], tuple[nn.Module, Path, Any]]:
    """`quantised(target)` gives a calibrated network, its file and its data."""
    monkeypatch.setattr(measure, "LATENCY_SECONDS", 0.05)

    def make(target: str) -> tuple[nn.Module, Path, Any]:
        torch.manual_seed(0)
        data, file = tiny_data(), tmp_path / f"{target}.onnx"
        model = q.prepare(tiny_nets.batch().eval(), data.example, target=target)
        q.calibrate(model, [data.images("train", 24)], "mse")
        export(q.to_export(model), file, InputSpec.of(data.preprocess))
        return model, file, data

    return make


def no_library() -> Any:
    raise EnvironmentLacks("openvino cannot be imported (simulated).")


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_network_is_measured_in_the_runtime_that_it_was_quantised_for(
    quantised: Any, target: str, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip(target)
    model, file, data = quantised(target)
    runtime = runtime_of(model, file)
    assert runtime == Runtime(target, "cpu", target)
    scored = score(file, data, runtime)
    assert (scored.runtime, scored.n) == (target, 12)
    timed = latency(file, data.images("test", 8), runtime, threads=2)
    assert (timed.runtime, timed.ships_in, timed.threads) == (target, target, 2)
    provider = {"onnxruntime": "CPUExecutionProvider", "openvino": "CPU"}[target]
    assert timed.provider == provider
    assert timed.median_ms > 0
    assert "measured in" not in caplog.text


def test_a_float_network_is_measured_in_onnx_runtime(tiny_nets: Any, tmp_path: Path) -> None:
    assert runtime_of(tiny_nets.batch(), tmp_path / "never-read.onnx") == ONNX_RUNTIME
    assert Runtime("onnxruntime", "cpu", None) == ONNX_RUNTIME


def test_without_the_runtime_onnx_runtime_stands_in_and_one_line_says_why(
    quantised: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, file, data = quantised("openvino")
    monkeypatch.setattr(openvino, "library", no_library)
    runtime = runtime_of(model, file)
    assert runtime == Runtime("onnxruntime", "cpu", "openvino")
    assert [r.getMessage() for r in caplog.records if r.name == measure.__name__] == [
        "measured in ONNX Runtime on the CPU and not in openvino, which the network is quantised "
        "for: openvino cannot be imported (simulated)."
    ]
    timed = latency(file, data.images("test", 8), runtime)
    assert (timed.runtime, timed.ships_in) == ("onnxruntime", "openvino")
    assert timed.provider == "CPUExecutionProvider"


def test_a_device_that_is_not_here_is_answered_in_the_same_way(
    quantised: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library = pytest.importorskip("openvino")

    class Bare:
        available_devices = ("GPU.0",)

    model, file, _ = quantised("openvino")
    monkeypatch.setattr(library, "Core", Bare)
    assert runtime_of(model, file) == Runtime("onnxruntime", "cpu", "openvino")
    assert "--device cpu: OpenVINO sees GPU.0 here" in caplog.text


def test_a_file_for_tensorrt_is_measured_in_onnx_runtime_and_the_record_says_so(
    quantised: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model, file, data = quantised("tensorrt")
    runtime = runtime_of(model, file)
    assert runtime == Runtime("onnxruntime", "cpu", "tensorrt")
    assert "not in tensorrt, which the network is quantised for: TensorRT runs eng" in caplog.text
    timed = latency(file, data.images("test", 8), runtime)
    assert (timed.runtime, timed.ships_in) == ("onnxruntime", "tensorrt")


def test_a_bundle_for_openvino_is_measured_shown_and_verified_in_it(
    work: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openvino")
    command = ["quantize", "--model", "runs/net", "--method", "ptq", "--calibration-images", "8"]
    own = ["--target", "openvino", "--trust", "tiny_nets:batch", "--out", "runs/q"]
    assert main([*command, *own]) == 0
    bundle = Bundle.open("runs/q")
    (_, before), (_, metrics) = measured(bundle.history)
    assert (before.latency.runtime, before.latency.ships_in) == ("onnxruntime", None)
    assert (metrics.latency.runtime, metrics.latency.provider) == ("openvino", "CPU")
    assert metrics.test.runtime == bundle.ships_in == "openvino"
    assert metrics.parity_openvino["images"] > 0
    first, last = rows(bundle.history)
    assert "OpenVINO" not in first[-1]
    assert last[-1].endswith("in OpenVINO)")
    page = bundle.file("report.html").read_text(encoding="utf-8")
    assert "1 thread, OpenVINO (CPU)" in page
    assert "OpenVINO against ONNX Runtime" in page
    # The golden outputs are ONNX Runtime's for every target; OpenVINO is held against them.
    golden = np.load(bundle.file("golden.npz"), allow_pickle=False)
    with open_session(bundle.file("model.onnx")) as session:
        (found,) = session.run({"input": golden["input"]}).values()
    assert np.array_equal(found, golden["output.logits"])
    checked = verify(bundle.path)
    assert checked.ok
    states = {item.runtime: item for item in checked.golden if item.state != "absent"}
    assert states["onnxruntime"].message == "equal to the bit"
    assert states["openvino"].state == "agrees"

    caplog.clear()
    monkeypatch.setattr(openvino, "library", no_library)
    again = export_bundle(Path("runs/q"), None, "tiny_nets:batch").history[-1].metrics
    assert (again.latency.runtime, again.latency.ships_in) == ("onnxruntime", "openvino")
    assert (again.test.runtime, again.parity_openvino) == ("onnxruntime", None)
    assert [m for m in caplog.messages if "simulated" in m] == [
        "measured in ONNX Runtime on the CPU and not in openvino, which the network is quantised "
        "for: openvino cannot be imported (simulated)."
    ]
    bundle = Bundle.open("runs/q")
    assert rows(bundle.history)[-1][-1].endswith("in ONNX Runtime, not in OpenVINO)")
    page = bundle.file("report.html").read_text(encoding="utf-8")
    assert "The last network is quantised for OpenVINO, and this is not its latency there." in page
