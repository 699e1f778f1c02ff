"""The graph against the layers: what is quantised, and what the engine made of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vcompress.bench.engine import Layer, LayerReport, Settings, build_engine
from vcompress.export.engine_proof import prove, quantised_nodes


def written(path: Path) -> Path:
    """A quantised convolution behind a pool, and one whose weight is float."""
    node, value = helper.make_node, helper.make_tensor_value_info
    scale, zero = np.asarray(np.float32(0.02)), np.asarray(np.int8(0))
    weight = np.arange(64 * 64 * 9, dtype=np.int64).reshape(64, 64, 3, 3) % 255 - 127
    constants = {
        "s": scale, "z": zero, "w": weight.astype(np.int8),
        "ws": np.linspace(0.01, 0.02, 64).astype(np.float32), "wz": np.zeros(64, np.int8),
        "plain": np.ones((64, 64, 1, 1), np.float32),
    }  # fmt: skip
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("MaxPool", ["d"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        node("Conv", ["p", "wd"], ["c"], name="first", pads=[1, 1, 1, 1]),
        node("Conv", ["c", "plain"], ["y"], name="second"),
    ]
    shape = ["b", 64, 16, 16]
    made = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, shape)],
        [value("y", TensorProto.FLOAT, ["b", 64, 8, 8])],
        [numpy_helper.from_array(v, n) for n, v in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(made, opset_imports=opsets, ir_version=10), str(path))
    return path


def layer(node: str, weight: str, kind: str = "correlation") -> Layer:
    return Layer(node, kind, ("Int8",), (weight,), ("Half",), (node,), (64,))


def test_quantised_is_what_has_qdq_on_both_operands_moves_in_between_apart(tmp_path: Path) -> None:
    proto = onnx.load(str(written(tmp_path / "m.onnx")))
    assert quantised_nodes(proto) == (("first",), ("second",))


@pytest.mark.parametrize(
    ("layers", "missed"),
    [
        ((layer("first", "Int8"),), ()),
        ((layer("first", "Half"),), (("first", "correlation on Half"),)),
        ((), (("first", "no layer of the engine names it"),)),
        ((layer("first", "Int8"), layer("first", "Float")), (("first", "correlation on Float"),)),
    ],
)
def test_each_quantised_node_must_have_become_int8(
    tmp_path: Path, layers: tuple[Layer, ...], missed: tuple[tuple[str, str], ...]
) -> None:
    proof = prove(written(tmp_path / "m.onnx"), LayerReport("test", layers))
    assert proof.missed == missed
    assert proof.ok is not bool(missed)
    assert proof.low == 1 - len(missed)


def test_a_weight_expanded_at_run_time_fails_the_proof(tmp_path: Path) -> None:
    kgen = Layer("k", "kgen", (), ("Int8",), ("Half",), ("the weight",), (64,))
    proof = prove(written(tmp_path / "m.onnx"), LayerReport("t", (layer("first", "Int8"), kgen)))
    assert proof.expanded == ("the weight",)
    assert not proof.ok


def test_a_real_build_runs_it_in_int8_and_not_on_sm_75(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, the extra `rtx`")
    file = written(tmp_path / "m.onnx")
    report = build_engine(file, tmp_path / "m.engine", Settings(sm=(89,), flavour="tensorrt-rtx"))
    assert report.layers is not None, report.layers_missing
    assert prove(file, report.layers).ok
    turing = build_engine(file, tmp_path / "t.engine", Settings(sm=(75,), flavour="tensorrt-rtx"))
    assert turing.layers is not None
    proof = prove(file, turing.layers)
    assert (proof.low, len(proof.missed), len(proof.expanded)) == (0, 1, 1)
