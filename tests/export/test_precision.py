"""Half precision at the level of the ONNX file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from vcompress.bench.errors import UserError
from vcompress.compress.quantization import calibrate, prepare, to_export
from vcompress.export import parity
from vcompress.export.onnx_export import cast_file, export
from vcompress.export.precision import convert, convert_file


class Small(nn.Module):
    """A convolution with BN, a residual and a classifier; float32 constants in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.bn = nn.BatchNorm2d(16)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)
        self.bn.running_var.uniform_(0.5, 2.0)
        self.bn.running_mean.normal_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.stem(x)) * 0.7)
        x = torch.relu(self.conv(x) + x)
        out: torch.Tensor = self.head(x.mean((2, 3)))
        return out


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def written(model: nn.Module, path: Path, opset: int | None = None) -> Path:
    export(model, path, ("input", (3, 16, 16)), metadata={"who": "me"}, opset=opset)
    return path


@pytest.fixture(scope="module")
def exported(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The float32 file, opset 20: one export for all tests."""
    return written(model, tmp_path_factory.mktemp("float") / "m.onnx").read_bytes()


@pytest.fixture
def file(exported: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(exported)
    return path


def kinds(proto: onnx.ModelProto) -> set[int]:
    return {t.data_type for t in proto.graph.initializer}


def test_float16_keeps_float32_at_the_edges_with_one_cast_each(
    model: nn.Module, images: torch.Tensor, file: Path
) -> None:
    size = file.stat().st_size
    report = convert_file(file, "fp16")
    proto = onnx.load(str(file))
    assert report.casts == 2
    assert [n.op_type for n in proto.graph.node].count("Cast") == 2
    edges = (*proto.graph.input, *proto.graph.output)
    assert {v.type.tensor_type.elem_type for v in edges} == {TensorProto.FLOAT}
    assert TensorProto.FLOAT not in kinds(proto)
    assert file.stat().st_size < 0.75 * size
    assert {p.key: p.value for p in proto.metadata_props}["who"] == "me"
    found = parity.check_cast(model, file, images, "fp16")
    assert found.ok
    assert found.optimised.sqnr_db > 55


def test_a_quantised_network_takes_its_scales_along_and_its_integers_stay(
    model: nn.Module, images: torch.Tensor, tmp_path: Path
) -> None:
    quantised = prepare(model, images[:1], target="tensorrt")
    calibrate(quantised, [images], "minmax")
    network = to_export(quantised)
    file = written(network, tmp_path / "m.onnx")
    before = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(file)).graph.initializer}
    convert_file(file, "fp16")
    after = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(file)).graph.initializer}
    scales = [n for n in after if n.endswith("scale")]
    assert scales
    for name in scales:
        assert after[name].dtype == np.float16
        # A scalar that became a list of one keeps TensorRT from int8.
        assert after[name].shape == before[name].shape
    for name, values in before.items():
        if values.dtype == np.int8:
            assert np.abs(after[name].astype(int) - values).max() <= 1
    found = parity.check_cast(network, file, images, "int8+fp16")
    assert found.ok
    assert found.optimised.sqnr_db > 30


def test_bfloat16_is_held_against_onnx_itself_where_the_runtime_has_none(
    model: nn.Module, images: torch.Tensor, tmp_path: Path
) -> None:
    file = written(model, tmp_path / "m.onnx", opset=22)
    convert_file(file, "bf16")
    assert not parity.runs_on_cpu(file)
    found = parity.check_cast(model, file, images, "bf16")
    assert found.images == parity.REFERENCE_IMAGES
    assert "reference evaluator" in found.message
    assert 30 < found.optimised.sqnr_db < 60


def test_bfloat16_needs_a_newer_opset(file: Path) -> None:
    held = file.read_bytes()
    with pytest.raises(UserError, match="needs 22 or later"):
        convert_file(file, "bf16")
    assert file.read_bytes() == held


def graph(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    return helper.make_model(
        helper.make_graph(
            nodes, "g", [value("x", TensorProto.FLOAT, [1, 4])],
            [value("y", TensorProto.FLOAT, [1, 4])],
            [numpy_helper.from_array(v, n) for n, v in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
    )  # fmt: skip


def test_a_weight_beyond_float16_is_refused_by_name() -> None:
    proto = graph(
        [helper.make_node("Mul", ["x", "big"], ["y"])], {"big": np.float32([1e5, 1, 1, 1])}
    )
    with pytest.raises(UserError, match=r"big holds 1e\+05"):
        convert(proto, "fp16")


def test_a_scale_that_underflows_is_raised_and_its_integers_follow() -> None:
    tiny = np.float32(2.0**-26)
    proto = graph(
        [
            helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"]),
            helper.make_node("Mul", ["x", "wd"], ["y"]),
        ],
        {"w": np.int8([100, -100, 4, 0]), "s": np.asarray(tiny), "z": np.asarray(np.int8(0))},
    )
    report = convert(proto, "fp16")
    found = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    assert report.clamped_scales == 1
    assert float(found["s"]) == 2.0**-24
    assert found["w"].tolist() == [25, -25, 1, 0]


def test_zeros_of_a_shape_follow_the_type() -> None:
    proto = graph(
        [
            helper.make_node("ConstantOfShape", ["n"], ["zeros"]),
            helper.make_node("Add", ["x", "zeros"], ["y"]),
        ],
        {"n": np.int64([4])},
    )
    convert(proto, "fp16")
    onnx.checker.check_model(proto, full_check=True)


def test_a_cast_that_fails_leaves_the_float32_file(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    report = export(model, path, ("input", (3, 16, 16)))
    held = path.read_bytes()
    with pytest.raises(UserError, match="opset"):
        cast_file(report, (3, 16, 16), "bf16")
    assert path.read_bytes() == held
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    cast = cast_file(report, (3, 16, 16), "fp16")
    assert cast.cast is not None
    assert cast.cast["casts"] == 2
    assert cast.float_bytes < 0.6 * report.float_bytes
