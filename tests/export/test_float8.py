"""FP8 in the place of int8, at the level of the ONNX file."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vcompress.bench.errors import UserError
from vcompress.export.float8 import LARGEST, convert
from vcompress.export.parity import compare
from vcompress.export.runtime import run_onnx


def graph(zero: np.ndarray, opset: int = 20) -> onnx.ModelProto:
    """A quantised matrix product [N, 64] x [64, 32]."""
    node, value = helper.make_node, helper.make_tensor_value_info
    weight = np.random.default_rng(0).integers(-127, 128, (64, 32)).astype(np.int8)
    constants = {
        "s": np.asarray(np.float32(0.03)), "z": zero, "w": weight,
        "ws": np.linspace(0.01, 0.02, 32).astype(np.float32), "wz": np.zeros(32, np.int8),
    }  # fmt: skip
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1),
        node("MatMul", ["d", "wd"], ["y"], name="product"),
    ]
    made = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, ["n", 64])],
        [value("y", TensorProto.FLOAT, ["n", 32])],
        [numpy_helper.from_array(v, n) for n, v in constants.items()],
    )  # fmt: skip
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def test_ranges_stay_and_the_numbers_come_close_to_those_of_int8() -> None:
    proto = graph(np.asarray(np.int8(0)))
    x = np.random.default_rng(1).normal(0, 1, (64, 64)).astype(np.float32)
    before = run_onnx(proto.SerializeToString(), x, optimised=False)[0]
    report = convert(proto)
    onnx.checker.check_model(proto, full_check=True)
    kinds = {t.name: t.data_type for t in proto.graph.initializer}
    assert kinds["w"] == kinds["z"] == kinds["wz"] == TensorProto.FLOAT8E4M3FN
    assert (report.pairs, report.weights) == (2, 1)
    assert 28 < report.weight_sqnr_db < 36
    scales = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    np.testing.assert_allclose(scales["s"] * LARGEST, 0.03 * 127, rtol=1e-6)
    assert scales["s"].shape == ()
    found = compare(before, run_onnx(proto.SerializeToString(), x, optimised=False)[0])
    assert found.sqnr_db > 24


def test_a_weight_that_two_nodes_read_is_converted_once() -> None:
    proto = graph(np.asarray(np.int8(0)))
    node = helper.make_node
    proto.graph.node[-1].output[0] = "once"
    proto.graph.node.extend(
        [
            node("DequantizeLinear", ["w", "ws", "wz"], ["wd2"], axis=1),
            node("MatMul", ["d", "wd2"], ["twice"]),
            node("Add", ["once", "twice"], ["y"]),
        ]
    )
    x = np.random.default_rng(1).normal(0, 1, (64, 64)).astype(np.float32)
    before = run_onnx(proto.SerializeToString(), x, optimised=False)[0]
    assert convert(proto).weights == 1
    found = compare(before, run_onnx(proto.SerializeToString(), x, optimised=False)[0])
    assert found.sqnr_db > 24


def test_what_is_not_symmetric_int8_is_refused() -> None:
    for zero in (np.asarray(np.int8(3)), np.asarray(np.uint8(128))):
        with pytest.raises(UserError, match="symmetric int8"):
            convert(graph(zero))
    again = graph(np.asarray(np.int8(0)))
    convert(again)
    with pytest.raises(UserError, match="symmetric int8"):
        convert(again)
    bare = graph(np.asarray(np.int8(0)))
    del bare.graph.node[0].input[2]
    with pytest.raises(UserError, match="computed scale or zero point"):
        convert(bare)
    with pytest.raises(UserError, match="19 or later"):
        convert(graph(np.asarray(np.int8(0)), opset=18))
    plain = graph(np.asarray(np.int8(0)))
    del plain.graph.node[:]
    with pytest.raises(UserError, match="quantises nothing"):
        convert(plain)
