from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from vcompress.compress import quantization as q
from vcompress.export import onnx_export, parity
from vcompress.export.onnx_export import ExportError, export
from vcompress.export.runtime import run_onnx


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)) + x)
        return self.fc(x.mean((2, 3)))


SPEC = ("input", (3, 10, 10))


def images(count: int = 8) -> Tensor:
    return torch.randn(count, 3, 10, 10, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    model = Small().train()
    with torch.no_grad():
        for _ in range(5):
            model(images(64) * 2 + 0.5)
    return model.eval()


@pytest.fixture(scope="module")
def deployed(small: nn.Module) -> nn.Module:
    prepared = q.prepare(small, images(1), target="onnxruntime")
    q.calibrate(prepared, [images(64)])
    return q.to_export(prepared)


def test_a_float_network_is_written_with_its_batch_norms_folded(
    small: nn.Module, tmp_path: Path
) -> None:
    report = export(small, tmp_path / "m.onnx", SPEC, metadata={"made_by": "a test"})
    assert report.operators == {"Add": 1, "Conv": 2, "Gemm": 1, "GlobalAveragePool": 1,
                                "Relu": 2, "Reshape": 1}  # fmt: skip
    assert report.size_bytes == (tmp_path / "m.onnx").stat().st_size
    proto = onnx.load(str(tmp_path / "m.onnx"))
    assert {p.key: p.value for p in proto.metadata_props}["made_by"] == "a test"
    found = parity.check(small, tmp_path / "m.onnx", images())
    assert found.ok
    assert found.optimised.sqnr_db > 100
    assert found.plain.top1_agreement == 1.0


def test_the_file_says_nothing_about_the_machine_that_wrote_it(
    small: nn.Module, deployed: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [str(Path(__file__).parent), str(Path(torch.__file__).parent),
              str(Path(onnx_export.__file__).parent), str(tmp_path)]  # fmt: skip
    for model in (small, deployed):
        export(model, tmp_path / "m.onnx", SPEC, metadata={"made_by": "a test"})
        content = (tmp_path / "m.onnx").read_bytes()
        for text in (*places, "stack_trace", "pkg.torch", ".py"):
            assert text.encode() not in content, text
    with monkeypatch.context() as patch:
        patch.setattr(onnx_export, "_forget_the_machine", lambda proto: None)
        export(deployed, tmp_path / "talks.onnx", SPEC, metadata={"made_by": "a test"})
    talks = (tmp_path / "talks.onnx").read_bytes()
    assert b"onnx_export.py" in talks and b"stack_trace" in talks
    assert len(content) < 0.6 * len(talks)


def test_the_batch_is_dynamic_and_the_names_are_fixed(small: nn.Module, tmp_path: Path) -> None:
    export(small, tmp_path / "m.onnx", SPEC)
    proto = onnx.load(str(tmp_path / "m.onnx"))
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    assert proto.graph.input[0].name == "input"
    assert proto.graph.output[0].name == "logits"
    assert dims[0].dim_param and [d.dim_value for d in dims[1:]] == [3, 10, 10]
    for count in (1, 5):
        assert run_onnx(tmp_path / "m.onnx", images(count).numpy(), optimised=True)[0].shape == (
            count,
            5,
        )


def test_quantised_weights_are_int8_initialisers_with_no_float_copy(
    deployed: nn.Module, tmp_path: Path
) -> None:
    report = export(deployed, tmp_path / "m.onnx", SPEC)
    proto = onnx.load(str(tmp_path / "m.onnx"))
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    weights = [a for a in arrays.values() if a.ndim > 1]
    assert len(weights) == 3
    assert all(w.dtype == np.int8 for w in weights)
    assert report.int8_bytes >= 3 * 8 * 9 + 8 * 8 * 9 + 8 * 5
    assert report.qdq_before == report.qdq_after == report.operators["DequantizeLinear"]
    assert all(a.size <= 8 for a in arrays.values() if a.dtype == np.float32)


def test_onnx_runtime_runs_every_layer_in_int8_and_equals_torch_bit_for_bit(
    deployed: nn.Module, tmp_path: Path
) -> None:
    import onnxruntime

    export(deployed, tmp_path / "m.onnx", SPEC)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        str(tmp_path / "m.onnx"), options, providers=["CPUExecutionProvider"]
    )
    operators = [n.op_type for n in onnx.load(str(tmp_path / "optimised.onnx")).graph.node]
    assert operators.count("QLinearConv") == 2
    assert operators.count("QLinearAdd") == 1
    assert operators.count("QLinearGlobalAveragePool") == 1
    assert operators.count("QGemm") == 1
    assert not {"Conv", "Gemm", "Add", "Relu"} & set(operators)
    found = parity.check(deployed, tmp_path / "m.onnx", images(64))
    assert found.ok
    assert found.optimised.sqnr_db > 110  # logits are float32: equal to their last bits
    assert found.first_divergence is None


def test_tensorrt_gets_int8_without_zero_points_and_float_biases(
    small: nn.Module, tmp_path: Path
) -> None:
    prepared = q.prepare(small, images(1), target="tensorrt")
    q.calibrate(prepared, [images(64)])
    export(q.to_export(prepared), tmp_path / "m.onnx", SPEC)
    proto = onnx.load(str(tmp_path / "m.onnx"))
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    zeros = [
        arrays[n.input[2]]
        for n in proto.graph.node
        if n.op_type in ("QuantizeLinear", "DequantizeLinear")
    ]
    assert all(z.dtype == np.int8 and not z.any() for z in zeros)
    convs = [n for n in proto.graph.node if n.op_type == "Conv"]
    assert all(arrays[n.input[2]].dtype == np.float32 for n in convs)


def test_parity_names_the_first_tensor_that_differs(deployed: nn.Module, tmp_path: Path) -> None:
    export(deployed, tmp_path / "m.onnx", SPEC)
    proto = onnx.load(str(tmp_path / "m.onnx"))
    weight = next(t for t in proto.graph.initializer if "conv2" in t.name and len(t.dims) == 4)
    values = onnx.numpy_helper.to_array(weight).copy()
    values[:, 0] = -values[:, 0]
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(proto, str(tmp_path / "broken.onnx"))
    found = parity.check(deployed, tmp_path / "broken.onnx", images(64))
    assert not found.ok
    assert found.first_divergence is not None
    assert found.first_divergence.startswith("bn2_q ")
    assert "bn2_q" in found.message


def test_a_bias_that_is_a_step_off_is_no_tie(deployed: nn.Module, tmp_path: Path) -> None:
    export(deployed, tmp_path / "m.onnx", SPEC)
    proto = onnx.load(str(tmp_path / "m.onnx"))
    bias = next(t for t in proto.graph.initializer if "conv2" in t.name and t.data_type == 6)
    values = onnx.numpy_helper.to_array(bias).copy()
    layer = deployed.get_submodule("conv2")
    rounded = deployed.get_submodule("bn2_q")
    values[0] += int(0.6 * rounded.scale / layer.quantised_bias.scale[0])  # six tenths of a step
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(proto, str(tmp_path / "off.onnx"))
    found = parity.first_divergence(deployed, tmp_path / "off.onnx", images(64))
    assert found is not None and found.startswith("bn2_q ") and "up to 1 steps" in found
    with pytest.MonkeyPatch.context() as patch:  # over seven images at a time
        patch.setattr(parity, "HELD_PIXELS", 7 * 10 * 10)
        assert parity.first_divergence(deployed, tmp_path / "off.onnx", images(64)) == found


def test_parity_warns_when_the_network_has_one_answer_for_everything(tmp_path: Path) -> None:
    torch.manual_seed(0)
    constant = nn.Sequential(nn.Flatten(), nn.Linear(300, 3)).eval()
    nn.init.zeros_(constant[1].weight)
    export(constant, tmp_path / "m.onnx", SPEC)
    found = parity.check(constant, tmp_path / "m.onnx", images())
    assert found.ok and found.one_class
    assert "same class" in found.message


def test_weights_that_are_not_finite_leave_no_file(small: nn.Module, tmp_path: Path) -> None:
    import copy

    broken = copy.deepcopy(small)
    broken.fc.weight.data[0, 0] = float("nan")
    with pytest.raises(ExportError, match="not finite"):
        export(broken, tmp_path / "m.onnx", SPEC)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_exported_gets_one_message_and_no_file(tmp_path: Path) -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ExportError, match="Branch cannot be exported"):
        export(Branch(), tmp_path / "m.onnx", SPEC)
    assert list(tmp_path.iterdir()) == []


def test_an_older_file_survives_a_failed_export(
    small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.onnx").write_bytes(b"before")

    def fail(*arguments: object) -> None:
        raise ExportError("checked and refused")

    monkeypatch.setattr(onnx_export, "check_file", fail)
    with pytest.raises(ExportError, match="refused"):
        export(small, tmp_path / "m.onnx", SPEC)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_bytes() == b"before"


def test_the_exporter_prints_nothing(
    small: nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    export(small, tmp_path / "m.onnx", SPEC)
    assert capfd.readouterr() == ("", "")


class Twins(Small):
    """Two heads, each behind a batch norm of its own; never trained, the norms are equal."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.fc2 = nn.BatchNorm1d(8), nn.BatchNorm1d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x))).mean((2, 3))
        return self.fc(self.norm1(x)) + self.fc2(self.norm2(x))


def test_roundings_of_equal_values_may_be_merged_and_none_may_be_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    prepared = q.prepare(Twins().eval(), images(1), target="onnxruntime")
    q.calibrate(prepared, [images(16)])
    twins = q.to_export(prepared.eval())
    report = export(twins, tmp_path / "m.onnx", SPEC)
    assert report.qdq_after == report.qdq_before - 1
    assert parity.check(twins, tmp_path / "m.onnx", images()).ok

    def lose_one(proto: onnx.ModelProto) -> int:
        rounded = next(n for n in proto.graph.node if n.op_type == "QuantizeLinear")
        lost = next(n for n in proto.graph.node if n.input and n.input[0] == rounded.output[0])
        for node in proto.graph.node:
            for index, name in enumerate(node.input):
                if name == lost.output[0]:
                    node.input[index] = rounded.input[0]
        proto.graph.node.remove(lost)
        return 0

    monkeypatch.setattr(onnx_export, "rewrite", lose_one)
    with pytest.raises(ExportError, match="An optimiser removed some"):
        export(twins, tmp_path / "lost.onnx", SPEC)
    assert not (tmp_path / "lost.onnx").exists()


def test_the_exporters_table_is_built_once_and_left_as_it_was(
    small: nn.Module, tmp_path: Path
) -> None:
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    before = vars(ONNXRegistry)["from_torchlib"]
    onnx_export._registry.cache_clear()
    for name in ("a.onnx", "b.onnx"):
        export(small, tmp_path / name, SPEC)
    assert onnx_export._registry.cache_info().misses == 1
    assert onnx_export._registry.cache_info().hits == 1
    assert vars(ONNXRegistry)["from_torchlib"] is before
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_the_file_is_the_same_whatever_memory_format_the_network_is_in(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip
    export(net, tmp_path / "plain.onnx", SPEC)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    strides = [p.stride() for p in net.parameters()]
    report = export(net, tmp_path / "turned.onnx", SPEC)
    assert [p.stride() for p in net.parameters()] == strides
    assert (tmp_path / "plain.onnx").read_bytes() == (tmp_path / "turned.onnx").read_bytes()
    assert set(report.operators) == {"Conv", "Relu", "GlobalAveragePool", "Reshape", "Gemm"}
