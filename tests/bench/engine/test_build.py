"""Builds in a process of their own: TensorRT-RTX on the CPU, and stand-ins that misbehave."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from vcompress.bench.apart import MARK
from vcompress.bench.bundle import sha256
from vcompress.bench.engine import Settings, build_engine
from vcompress.bench.engine.advice import refused
from vcompress.bench.engine.settings import parse_batch, parse_hw, parse_sm
from vcompress.bench.errors import EnvironmentLacks, UserError
from vcompress.bench.onnx_file import chain_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    file = tmp_path / "m.onnx"
    file.write_bytes(chain_model(side=32, length=2))
    return file


def ends(monkeypatch: pytest.MonkeyPatch, code: int, out: str = "", err: str = "") -> None:
    done = SimpleNamespace(returncode=code, stdout=out, stderr=err)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: done)


def test_an_engine_is_built_with_no_gpu_and_says_what_it_is(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, the extra `rtx`")
    cache = tmp_path / "timing.cache"
    settings = Settings(flavour="tensorrt-rtx", sm=(86, 89))
    report = build_engine(model, tmp_path / "out/m.engine", settings, timing_cache=cache)
    assert report.size_bytes == (tmp_path / "out/m.engine").stat().st_size > 0
    assert report.onnx_sha256 == sha256(model)
    assert report.library == "tensorrt_rtx"
    assert report.layers is not None, report.layers_missing
    assert set(report.layers.by_precision) == {"Float"}
    body = json.loads(json.dumps(report.to_json()))
    assert body["settings"]["sm"] == [86, 89]
    assert Settings.from_json(body["settings"]) == settings
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out/m.engine"]


def test_what_the_library_refuses_is_one_message(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, the extra `rtx`")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model at all")
    for file, sm, said in (
        (broken, 89, "not a whole ONNX file"),
        (model, 90, "does not build for"),
    ):
        with pytest.raises(UserError, match=said):
            build_engine(file, tmp_path / "m.engine", Settings(flavour="tensorrt-rtx", sm=(sm,)))
    assert not (tmp_path / "m.engine").exists()


def test_a_model_that_links_to_a_file_elsewhere_is_not_built(tmp_path: Path) -> None:
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [4, 4], bytes(64), raw=True)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="data.bin")
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [info("x", 1, [1, 4])],
        [info("y", 1, [1, 4])], [tensor],
    )  # fmt: skip
    (tmp_path / "secret").write_bytes(bytes(64))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "data.bin").symlink_to(tmp_path / "secret")
    onnx.save(helper.make_model(graph), str(tmp_path / "in" / "m.onnx"))
    with pytest.raises(UserError, match="outside the model's folder"):
        build_engine(tmp_path / "in" / "m.onnx", tmp_path / "m.engine")


def test_no_tensorrt_says_what_to_install(model: Path, tmp_path: Path) -> None:
    if "tensorrt" in sys.modules or subprocess.run(
        [sys.executable, "-c", "import tensorrt"], capture_output=True, check=False
    ).returncode == 0:  # fmt: skip
        pytest.skip("the classic TensorRT is installed here")
    with pytest.raises(EnvironmentLacks, match=r"pip install 'tensorrt>=10\.13'"):
        build_engine(model, tmp_path / "m.engine", Settings(flavour="tensorrt"))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (-signal.SIGSEGV, "crashed \\(SIGSEGV\\)"),
        (-signal.SIGKILL, "memory of this machine is too small"),
        (3, "ended with status 3"),
    ],
)
def test_a_builder_that_dies_is_one_message_and_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str
) -> None:
    ends(monkeypatch, code, err="first\nthe last word\n")
    with pytest.raises(UserError, match=said) as caught:
        build_engine(model, tmp_path / "m.engine")
    assert "the last word" in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx"]


def test_a_builder_that_does_not_end_is_stopped(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*call: Any, timeout: float, **options: Any) -> Any:
        raise subprocess.TimeoutExpired("worker", timeout)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(UserError, match="did not finish within 5 s"):
        build_engine(model, tmp_path / "m.engine", Settings(timeout_s=5))


def test_an_answer_behind_a_librarys_chatter_is_found(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = json.dumps({"error": "no GPU", "status": 4})
    ends(monkeypatch, 0, out=f"[TRT] loading...\n{MARK}{answer}\n")
    with pytest.raises(EnvironmentLacks, match="no GPU"):
        build_engine(model, tmp_path / "m.engine")


@pytest.mark.parametrize(
    ("said", "cure"),
    [
        ("Cannot compile operation 'x' for Turing (SM75): FP32 GEMM", "leave 75 out of --sm"),
        ("Cannot compile for target(s) sm86: b16", "FP8 needs SM 89"),
        ("NonZero plugin creator version 1 was not found", "no such operator"),
        ("ElementWise must have same input types", "vcompress cast"),
        ("cudaMalloc: out of memory", "largest --batch"),
        ("nothing that is known", "vcompress lint"),
    ],
)
def test_a_refusal_comes_with_what_to_do(said: str, cure: str) -> None:
    noise = "CUDA driver version is insufficient for CUDA runtime version"
    text = str(refused(Path("m.onnx"), [f"{said}\n{noise}"]))
    assert cure in text
    assert said in text
    assert "driver version" not in text


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch": (4, 2, 8)}, {"batch": (0, 1, 1)}, {"hw": (0, 4)}, {"sm": (8,)},
        {"workspace_mib": 0}, {"optimisation_level": 6}, {"timeout_s": 0.0},
        {"shapes": {"x": ((1, 2), (1, 2, 3), (1, 2))}}, {"shapes": {"x": ((4,), (2,), (8,))}},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused_when_they_are_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        Settings(**wrong)


def test_flags_are_read() -> None:
    assert parse_batch("1:8:32") == (1, 8, 32)
    assert parse_batch("8") == (8, 8, 8)
    assert parse_hw("224") == (224, 224)
    assert parse_hw("320x256") == (320, 256)
    assert parse_sm("75, 8.6,sm89,86") == (75, 86, 89)
    assert parse_sm("") == ()
    for parse, text in (
        (parse_batch, "8:1"), (parse_batch, "8:1:2"), (parse_hw, "axb"), (parse_hw, "1x2x3"),
        (parse_sm, "ada"),
    ):  # fmt: skip
        with pytest.raises(UserError, match="expected"):
            parse(text)


def test_settings_with_shapes_survive_json() -> None:
    settings = Settings(shapes={"x": ((1, 2), (2, 2), (4, 2))}, hw=(8, 9), timeout_s=7.0)
    body = json.loads(json.dumps(settings.to_json()))
    assert replace(Settings.from_json(body), timeout_s=7.0) == settings
    assert "timeout_s" not in body
