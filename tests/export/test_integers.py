"""The graph that ONNX Runtime runs is read back: which int8 layers are computed in integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from vcompress.compress import quantization as q
from vcompress.export import integers, onnx_export

STEP, ZERO = "step", "zero"


def rounding(name: str, out: str) -> list[NodeProto]:
    steps = [STEP, ZERO]
    return [
        helper.make_node("QuantizeLinear", [name, *steps], [f"{out}_int"]),
        helper.make_node("DequantizeLinear", [f"{out}_int", *steps], [out]),
    ]


def convolution(layer: str, given: str, out: str) -> list[NodeProto]:
    names = [f"{layer}.quantised_weight.integers", "weight_step", "weight_zero"]
    return [
        helper.make_node("DequantizeLinear", names, [f"{layer}_w"], axis=0),
        helper.make_node("Conv", [given, f"{layer}_w"], [out]),
    ]


def write(file: Path, nodes: list[NodeProto], layers: tuple[str, ...]) -> Path:
    weight = np.arange(-72, 72, dtype=np.int8).reshape(4, 4, 3, 3)
    constants = [
        numpy_helper.from_array(np.float32(0.02), STEP),
        numpy_helper.from_array(np.uint8(128), ZERO),
        numpy_helper.from_array(np.full(4, 0.01, np.float32), "weight_step"),
        numpy_helper.from_array(np.zeros(4, np.int8), "weight_zero"),
        numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "pads"),
        *(numpy_helper.from_array(weight, f"{n}.quantised_weight.integers") for n in layers),
    ]
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 4, 12, 12])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [given], [out], constants)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), file
    )
    return file


def test_layers_between_roundings_run_in_integers(tmp_path: Path) -> None:
    nodes = [*rounding("input", "x"), *convolution("a", "x", "y"), *rounding("y", "out")]
    found = integers.read_back(write(tmp_path / "m.onnx", nodes, ("a",)))
    assert (found.meant, found.integer, found.float_layers) == (1, 1, {})
    assert (found.integer_operators, found.float_operators) == (1, 0)
    assert found.text == "1 of 1 layers run in integers"


def test_a_layer_in_floating_point_is_named_with_the_operator_to_blame(tmp_path: Path) -> None:
    nodes = [
        *rounding("input", "x"),
        helper.make_node("Pad", ["x", "pads"], ["padded"], mode="reflect"),
        *convolution("a", "padded", "y"), *rounding("y", "z"),
        *convolution("b", "z", "u"), helper.make_node("Sigmoid", ["u"], ["v"]),
        *rounding("v", "w"), *convolution("c", "w", "o"), *rounding("o", "out"),
    ]  # fmt: skip
    found = integers.read_back(write(tmp_path / "m.onnx", nodes, ("a", "b", "c")))
    assert (found.meant, found.integer) == (3, 1)
    assert found.float_layers == {
        "a": "Pad stands before it",
        "b": "Sigmoid behind it reads floats",
    }
    assert (found.integer_operators, found.float_operators) == (1, 2)


@pytest.mark.parametrize("kept", [(), ("0",)])
def test_an_exported_network_is_read_back(kept: tuple[str, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, groups=2),
        torch.nn.Flatten(), torch.nn.Linear(512, 5),
    ).eval()  # fmt: skip
    x = torch.randn(8, 3, 12, 12)
    prepared = q.prepare(model, x[:1], target="onnxruntime", keep_float=kept)
    q.calibrate(prepared, [x])
    onnx_export.export(q.to_export(prepared.eval()), tmp_path / "m.onnx", ("input", (3, 12, 12)))
    found = integers.read_back(tmp_path / "m.onnx")
    assert (found.meant, found.integer) == (3 - len(kept), 3 - len(kept))
    assert found.float_operators == len(kept)


def test_a_linear_layer_and_its_relu_run_in_integers_whatever_reads_them(tmp_path: Path) -> None:
    class Bottleneck(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.code = torch.nn.Conv2d(3, 8, 3, 4), torch.nn.Linear(72, 72)
            self.up, self.fc = torch.nn.ConvTranspose2d(8, 8, 2, 2), torch.nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.code(torch.relu(self.a(x)).flatten(1)))
            return self.fc(self.up(x.view(-1, 8, 3, 3)).mean((2, 3)))

    torch.manual_seed(0)
    model, x = Bottleneck().eval(), torch.randn(8, 3, 12, 12)
    prepared = q.prepare(model, x[:1], target="onnxruntime")
    q.calibrate(prepared, [x])
    onnx_export.export(q.to_export(prepared.eval()), tmp_path / "m.onnx", ("input", (3, 12, 12)))
    found = integers.read_back(tmp_path / "m.onnx")
    assert (found.meant, found.integer, found.float_layers) == (3, 3, {})
