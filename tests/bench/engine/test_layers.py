"""The builder's list of layers, from stored samples of TensorRT-RTX 1.7.1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vcompress.bench.engine.layers import Layer, LayerReport, LayersUnreadable, parse
from vcompress.bench.errors import UserError

VERSION = "1.7.1.116"


def sample(name: str) -> str:
    return Path(__file__).with_name(f"layers_rtx_1_7_{name}.txt").read_text()


def test_convolutions_are_read_with_the_types_of_both_operands_and_their_onnx_nodes() -> None:
    report = parse(sample("convolutions"), VERSION)
    assert report.source == "build log of TensorRT-RTX 1.7.1.116"
    first = report.compute[0]
    assert (first.kind, first.inputs, first.constants[0]) == ("correlation", ("Int8",), "Int8")
    assert first.constant_elements[0] == 64 * 4 * 7 * 7
    assert first.onnx == ("node_Conv_8", "node__symbolic_1", "node__symbolic_2")
    assert (first.low, first.precision, first.outputs) == (True, "Int8", ("Float",))
    assert report.of("node_Conv_8") == (first,)
    assert report.expanded == ()


def test_the_classifier_that_stays_in_float_is_counted_and_so_is_the_bookkeeping() -> None:
    report = parse(sample("convolutions"), VERSION)
    assert {"signal", "wait", "shape_call", "maxpool"} <= {layer.kind for layer in report.layers}
    last = report.compute[-1]
    assert (last.kind, last.precision, last.low) == ("runtime_fusion", "Float", False)
    assert report.by_precision == {"Int8": len(report.low), "Float": 1}


def test_an_attention_in_one_kernel_counts_as_its_two_products() -> None:
    report = parse(sample("attention"), VERSION)
    (attention,) = [layer for layer in report.layers if layer.attention]
    assert attention.kind == "kgen"
    assert attention.low
    assert report.of("node_matmul") == report.of("node_matmul_1") == (attention,)


def test_a_weight_that_is_expanded_at_run_time_is_seen() -> None:
    report = parse(sample("expanded"), VERSION)
    assert report.by_precision == {"Half": 1}
    assert report.low == ()
    (expanded,) = report.expanded
    assert (expanded.kind, expanded.inputs) == ("kgen", ())
    assert "Int8" in expanded.constants


def test_names_apart_by_a_separator_are_read_one_by_one() -> None:
    line = sample("convolutions").splitlines()[2]
    joined = line.replace("]\x1f[ONNX Layer: ", "][ONNX Layer: ")
    assert joined != line
    assert parse(f"Layers:\n{joined}\n", VERSION) == parse(f"Layers:\n{line}\n", VERSION)


def test_a_report_survives_json() -> None:
    report = parse(sample("attention"), VERSION)
    body = json.loads(json.dumps(report.to_json()))
    assert body["low_precision_layers"] == len(report.low)
    assert LayerReport.from_json(body) == report
    with pytest.raises(UserError, match="layer report"):
        LayerReport.from_json({"source": 3})


@pytest.mark.parametrize("version", ["1.8.0.1", "1.70.0", "11.4.0"])
def test_another_version_is_not_guessed_at(version: str) -> None:
    with pytest.raises(LayersUnreadable, match=r"known of 1\.7"):
        parse(sample("attention"), version)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("LayerType:", "Kind:", "a layer of TensorRT-RTX"),
        ("Datatype:", "Type:", "a tensor of"),
        ("Layers:\n", "Layer list:\n", "does not begin"),
    ],
)
def test_a_changed_format_is_an_error_and_no_wrong_count(old: str, new: str, said: str) -> None:
    with pytest.raises(LayersUnreadable, match=said):
        parse(sample("attention").replace(old, new), VERSION)
    with pytest.raises(LayersUnreadable, match="names no layers"):
        parse("Layers:\n\n", VERSION)


@pytest.mark.parametrize(
    ("inputs", "constants", "elements", "low"),
    [
        (("Int8",), ("Int8", "Float"), (64, 8), True),
        (("Int8",), ("Half",), (64,), False),
        (("Half",), ("Int8",), (64,), False),
        (("FP8", "FP8"), ("Float",), (1,), True),
        (("Int8", "Half"), (), (), False),
    ],
)
def test_a_product_is_low_only_where_both_operands_are(
    inputs: tuple[str, ...], constants: tuple[str, ...], elements: tuple[int, ...], low: bool
) -> None:
    assert Layer("x", "gemm", inputs, constants, ("Half",), (), elements).low is low
