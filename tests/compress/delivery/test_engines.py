"""Engines of a bundle; the builder is a stand-in but for one test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vcompress.bench.bundle import Bundle, InputSpec, Preprocess, sha256
from vcompress.bench.bundle import bundle as bundles
from vcompress.bench.engine import BuildReport, Layer, LayerReport, Settings
from vcompress.bench.errors import UserError
from vcompress.compress.bundles.engine_records import read_engines
from vcompress.compress.bundles.precisions import check_available, held_by
from vcompress.compress.delivery import engines
from vcompress.compress.delivery.engines import TooLittle, build_into, parse_required
from vcompress.compress.reporting.engines import engine_section
from vcompress.export.engine_proof import Proof


def make(folder: Path, quantization: Any = None, precision: str | None = None) -> Bundle:
    body: dict[str, Any] = {"model": {}, "changes": {}, "quantization": quantization}
    body |= {} if precision is None else {"precision": precision}
    with bundles.create(
        folder, input=InputSpec("input", (3, 8, 8)), preprocess=Preprocess(size=(8, 8)),
        labels=("a", "b"), data=None, history=(),
    ) as staging:  # fmt: skip
        (staging / "model.onnx").write_bytes(b"a network")
        (staging / "architecture.json").write_text(json.dumps(body))
        (staging / "report.html").write_text("old")
    return Bundle.open(folder)


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> list[Layer]:
    """The layers that the next engine has."""
    layers = [Layer("c", "correlation", ("Int8",), ("Int8",), ("Half",), ("conv",), (64,))]

    def build(onnx: Path, out: Path, settings: Settings, timing_cache: Any = None) -> BuildReport:
        out.write_bytes(b"an engine")
        return BuildReport(
            out, 9, 1.5, sha256(onnx), "tensorrt_rtx", "1.7.1", "", settings,
            LayerReport("test", tuple(layers)), "",
        )  # fmt: skip

    def prove(onnx: Path, found: LayerReport) -> Proof:
        low = tuple(("conv", "wide") for layer in found.layers if not layer.low)
        return Proof(("conv",), ("head",), low, ())

    monkeypatch.setattr(engines, "build_engine", build)
    monkeypatch.setattr(engines.engine_proof, "prove", prove)
    monkeypatch.setattr(engines, "write_report", lambda path, *a, **k: path.write_text("new"))
    return layers


INT8 = {"target": "tensorrt"}


def test_an_engine_goes_into_the_bundle_with_its_layers_and_settings(
    tmp_path: Path, builder: list[Layer]
) -> None:
    made = make(tmp_path / "b", INT8)
    bundle = build_into(made.path, ("tensorrt-rtx",), Settings(sm=(86, 89)), required="all")
    bundle.verify()
    assert "engines/tensorrt-rtx-int8-sm86-sm89.engine" in bundle.files
    (record,) = read_engines(bundle)
    assert record["onnx"] == "model.onnx"
    assert record["build"]["onnx_sha256"] == bundle.files["model.onnx"].sha256
    assert record["build"]["settings"]["sm"] == [86, 89]
    assert (record["proof"]["low_precision_nodes"], record["proof"]["quantised_nodes"]) == (1, 1)
    assert record["layers"]["by_precision"] == {"Int8": 1}
    assert bundle.file("report.html").read_text() == "new"
    page = "".join(engine_section([record]))
    assert "tensorrt-rtx-int8-sm86-sm89.engine" in page
    assert "1 of 1 (1/1 quantised)" in page


def test_engines_for_other_gpus_stay_and_stale_ones_go(
    tmp_path: Path, builder: list[Layer]
) -> None:
    path = make(tmp_path / "b", INT8).path
    build_into(path, ("tensorrt-rtx",), Settings(sm=(86,)))
    both = build_into(path, ("tensorrt-rtx",), Settings(sm=(89,)))
    assert [r["engine"] for r in read_engines(both)] == [
        "tensorrt-rtx-int8-sm86.engine", "tensorrt-rtx-int8-sm89.engine",
    ]  # fmt: skip
    with bundles.create(
        path, input=both.input, preprocess=both.preprocess, labels=both.labels, data=None,
        history=(),
    ) as staging:  # fmt: skip
        for name in both.files:
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_bytes((path / name).read_bytes())
        (staging / "model.onnx").write_bytes(b"another network")
    after = build_into(path, ("tensorrt-rtx",), Settings(sm=(120,)))
    assert [r["engine"] for r in read_engines(after)] == ["tensorrt-rtx-int8-sm120.engine"]


def test_too_little_int8_is_a_gate_and_leaves_the_bundle_alone(
    tmp_path: Path, builder: list[Layer]
) -> None:
    made = make(tmp_path / "b", INT8)
    before = (made.path / "manifest.json").read_bytes()
    builder[0] = Layer("c", "correlation", ("Half",), ("Half",), ("Half",), ("conv",), (64,))
    for required, sm, said in (
        ("all", 89, "conv"),
        ("all", 75, "no int8 on SM 75"),
        (1, 89, "0 of"),
    ):
        with pytest.raises(TooLittle, match=said) as caught:
            build_into(made.path, ("tensorrt-rtx",), Settings(sm=(sm,)), required=required)  # type: ignore[arg-type]
        assert caught.value.status == 1
    assert (made.path / "manifest.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize(
    ("quantization", "cast", "holds", "good", "bad"),
    [
        (None, None, "fp32", ("fp16", "bf16"), ("int8", "int8+fp16", "fp8")),
        (None, "fp16", "fp16", (), ("fp32", "int8", "bf16")),
        (INT8, None, "int8", ("int8+fp16", "fp8"), ("fp32", "fp16")),
        (INT8, "fp16", "int8+fp16", (), ("int8", "fp8", "fp32")),
    ],
)
def test_a_bundle_gives_what_can_be_made_of_it_without_data(
    tmp_path: Path, quantization: Any, cast: str | None, holds: str, good: Any, bad: Any
) -> None:
    bundle = make(tmp_path / "b", quantization, cast)
    assert held_by(bundle) == holds
    assert check_available(bundle, holds, None) == holds
    assert [check_available(bundle, holds, wanted) for wanted in good] == list(good)
    for wanted in bad:
        with pytest.raises(UserError, match=f"holds {holds}".replace("+", r"\+")):
            check_available(bundle, holds, wanted)


def test_a_network_quantised_for_another_runtime_is_refused(tmp_path: Path) -> None:
    bundle = make(tmp_path / "b", {"target": "onnxruntime"})
    with pytest.raises(UserError, match="quantised for onnxruntime"):
        check_available(bundle, "int8", None)


def test_a_record_that_was_tampered_with_is_refused(tmp_path: Path, builder: list[Layer]) -> None:
    bundle = build_into(make(tmp_path / "b", INT8).path, ("tensorrt-rtx",), Settings(sm=(89,)))
    (bundle.path / "engines/tensorrt-rtx-int8-sm89.json").write_text("{}")
    with pytest.raises(UserError, match="changed after it was written"):
        read_engines(bundle)


def test_require_int8_is_all_or_a_number() -> None:
    assert [parse_required(t) for t in (None, "all", "12")] == [None, "all", 12]
    with pytest.raises(UserError, match="expected `all`"):
        parse_required("most")
