from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from vcompress.bench import runtimes
from vcompress.bench.errors import EnvironmentLacks, UserError
from vcompress.bench.runtimes import open_session
from vcompress.bench.timing.inputs import resolve_shapes, synthetic


def test_a_runtime_is_known_by_lying_in_the_folder() -> None:
    assert runtimes.names() == ("onnxruntime", "openvino", "tensorrt", "torch")
    assert runtimes.suits(Path("a/model.onnx")) == "onnxruntime"
    assert runtimes.suits(Path("a/model.engine")) == "tensorrt"


def test_a_runtime_or_ending_that_is_not_known_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="Did you mean 'tensorrt'"):
        runtimes.module("tensorr")
    with pytest.raises(UserError, match=r"no runtime opens \.tflite"):
        runtimes.suits(Path("model.tflite"))


def test_onnx_runtime_computes_what_the_model_says(models: Path) -> None:
    with open_session(models / "classifier.onnx", threads=1) as session:
        assert session.provider == "CPUExecutionProvider"
        assert session.facts.options["intra_op_num_threads"] == 1
        assert str(session.inputs[0]) == "x [batch, 3, 32, 32] float32"
        feed = synthetic(session.inputs, resolve_shapes(session.inputs, 2)).ring[0]
        raw = onnxruntime.InferenceSession(str(models / "classifier.onnx"))
        np.testing.assert_array_equal(session.run(feed)["logits"], raw.run(None, feed)[0])
        assert session.load_ms > 0


def test_io_binding_gives_the_same_and_says_that_copies_are_left_out(models: Path) -> None:
    with open_session(models / "classifier.onnx", io_binding=True) as session:
        feed = synthetic(session.inputs, resolve_shapes(session.inputs)).ring[0]
        session.prepare(feed)()
        assert "IO binding" in session.facts.includes


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_device_that_is_not_there_is_refused_and_never_replaced(
    models: Path, device: str
) -> None:
    if device == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(EnvironmentLacks, match=f"--device {device} needs"):
        open_session(models / "classifier.onnx", device=device)


def test_a_provider_that_does_not_start_is_an_error_and_not_a_cpu_run(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As with onnxruntime-gpu and no driver: listed, then dropped with a warning.
    monkeypatch.setattr(
        onnxruntime, "get_available_providers",
        lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )  # fmt: skip
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(EnvironmentLacks, match="would run on CPUExecutionProvider"),
    ):
        open_session(models / "classifier.onnx", device="cuda")


def test_a_device_of_another_runtime_is_named(models: Path) -> None:
    with pytest.raises(UserError, match="onnxruntime runs on cpu, cuda, tensorrt; got --device gp"):
        open_session(models / "classifier.onnx", device="gpx")


@pytest.mark.parametrize(
    ("shape", "dtype"), [((1, 4, 32, 32), "float32"), ((1, 3, 32), "float32"),
                         ((1, 3, 32, 32), "float64")],
)  # fmt: skip
def test_an_input_that_does_not_fit_says_what_was_fed_and_what_is_expected(
    models: Path, shape: tuple[int, ...], dtype: str
) -> None:
    with open_session(models / "classifier.onnx") as session:
        with pytest.raises(UserError, match=r"expects x \[batch, 3, 32, 32\] float32") as caught:
            session.run({"x": np.ones(shape, dtype)})
        assert str(list(shape)) in str(caught.value)
        assert dtype in str(caught.value)


@pytest.mark.parametrize("name", ["two_inputs", "half", "fixed"])
def test_integers_bools_halves_and_fixed_batches_are_fed(models: Path, name: str) -> None:
    with open_session(models / f"{name}.onnx") as session:
        shapes = resolve_shapes(session.inputs, 4)
        feed = synthetic(session.inputs, shapes)
        assert {s.dtype for s in session.inputs} == {str(a.dtype) for a in feed.ring[0].values()}
        for array in session.run(feed.ring[0]).values():
            assert array.shape[0] == 4
            assert np.isfinite(array).all()


def test_the_profile_names_the_nodes_and_adds_up(models: Path) -> None:
    with open_session(models / "classifier.onnx", threads=1) as session:
        feed = synthetic(session.inputs, resolve_shapes(session.inputs)).ring[0]
        nodes = session.profile(feed, runs=5)
    assert sum(n.share for n in nodes) == pytest.approx(1)
    assert {n.operator for n in nodes} >= {"Conv", "MatMul"}
    assert [n.time_us for n in nodes] == sorted((n.time_us for n in nodes), reverse=True)


def test_an_engine_without_its_runtime_or_gpu_says_what_is_missing(tmp_path: Path) -> None:
    engine = tmp_path / "a.engine"
    engine.write_bytes(b"engine")
    installed = find_spec("tensorrt") or find_spec("tensorrt_rtx")
    if installed and Path("/dev/nvidiactl").exists():
        pytest.skip("a GPU is here: its tests are in tests/gpu")
    message = "No NVIDIA GPU" if installed else "pip install tensorrt"
    with pytest.raises(EnvironmentLacks, match=message):
        open_session(engine)


@pytest.mark.parametrize("package", ["bench", "compress", "export"])
def test_onnx_runtime_collects_no_telemetry(package: str, models: Path, tmp_path: Path) -> None:
    program = f"""
import vcompress.{package}
import subprocess, sys
opened = "import onnxruntime; onnxruntime.InferenceSession({str(models / "classifier.onnx")!r})"
exec(opened)
subprocess.run([sys.executable, "-c", opened], check=True)
"""
    kept = {n: v for n, v in os.environ.items() if n != "ORT_DISABLE_TELEMETRY"}
    places = {n: str(tmp_path) for n in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_DATA_HOME")}
    subprocess.run([sys.executable, "-c", program], env=kept | places, check=True, timeout=60)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
