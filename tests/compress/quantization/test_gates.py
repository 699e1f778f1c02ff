"""SiLU, hard swish and hard sigmoid run in integers, as ONNX Runtime computes them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vcompress.compress import quantization as q
from vcompress.compress.quantization.gates import GatedActivation
from vcompress.export import onnx_export, parity

SHAPE = (3, 24, 24)


class Gated(nn.Module):
    """Two convolutions with an activation and a squeeze-and-excite block between them."""

    def __init__(self, activation: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.stem, self.norm, self.act = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), activation
        self.down, self.up, self.gate = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1), gate
        self.conv, self.head = nn.Conv2d(16, 16, 3), nn.Linear(16, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x)))
        pooled = F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))
        x = self.act(self.conv(x * self.gate(self.up(pooled))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def network(activation: nn.Module, gate: nn.Module) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = Gated(activation, gate)
    for layer in (model.stem, model.conv, model.up):
        nn.init.normal_(layer.weight, 0, 0.4)  # so that the gates are not in the middle alone
    return model.eval(), torch.randn(32, *SHAPE)


def calibrated(model: nn.Module, x: Tensor) -> nn.Module:
    prepared = q.prepare(model, x[:1], target="onnxruntime")
    q.calibrate(prepared, [x])
    return prepared


@pytest.mark.parametrize(
    ("activation", "gate", "kernels"),
    [
        (nn.SiLU(), nn.Sigmoid(), {"QLinearSigmoid": 3, "QLinearMul": 3}),
        (nn.Hardswish(), nn.Hardsigmoid(), {"QLinearAdd": 3, "QLinearMul": 3}),
    ],
)
def test_gates_run_in_integers_and_equal_the_file_bit_for_bit(
    activation: nn.Module, gate: nn.Module, kernels: dict[str, int], tmp_path: Path
) -> None:
    model, x = network(activation, gate)
    prepared = calibrated(model, x)
    deployed, file = q.to_export(prepared.eval()), tmp_path / "m.onnx"
    onnx_export.export(deployed, file, ("input", SHAPE))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "o.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
    nodes = Counter(n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node)
    assert {kernel: nodes[kernel] for kernel in kernels} == kernels
    assert not {"Sigmoid", "HardSigmoid", "Mul", "DequantizeLinear"} & set(nodes)
    found = parity.check(deployed, file, x)
    assert found.ok
    assert found.optimised.sqnr_db == float("inf") or found.optimised.max_abs < 1e-5
    reference = parity.run_torch(model, x)
    assert parity.compare(reference, parity.run_torch(deployed, x)).sqnr_db > 30
    # The network that is trained rounds as the one that ships.
    assert parity.compare(reference, parity.run_torch(prepared, x)).sqnr_db > 30


@pytest.mark.parametrize("kind", ["silu", "hardswish", "hardsigmoid"])
def test_a_rounded_gate_is_near_the_float_one_and_trains(kind: str) -> None:
    gated = GatedActivation(kind)
    plain = {"silu": F.silu, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid}[kind]
    x = torch.linspace(-8, 8, 4001, requires_grad=True)
    gated.gate_quantizer.enabled = False
    assert torch.equal(gated(x), plain(x))
    gated.gate_quantizer.set_range(1 / 255, 0)
    made = gated(x)
    bound = 1 / 255 if kind == "hardsigmoid" else 8 / 255
    assert float((made - plain(x)).detach().abs().max()) < bound
    made.sum().backward()
    (wanted,) = torch.autograd.grad(plain(x).sum(), x)
    assert x.grad is not None
    inside = (x.abs() - 3).abs() > 0.1  # at its corners a gate has two gradients
    assert float((x.grad - wanted)[inside].abs().max()) < 0.05
    assert not [p for p in gated.parameters() if p.requires_grad]


def test_a_restored_network_has_the_same_gates_and_an_older_placement_none() -> None:
    model, x = network(nn.Hardswish(), nn.Hardsigmoid())
    prepared = calibrated(model, x)
    placement = q.placement(prepared)
    assert [gate["kind"] for gate in placement["gates"]].count("hardsigmoid") == 1
    again = q.restore(model, placement)
    again.load_state_dict(prepared.state_dict())
    assert torch.equal(again.eval()(x), prepared.eval()(x))
    older = {k: v for k, v in placement.items() if k != "gates"}
    plain = q.restore(model, older)
    assert not [m for m in plain.modules() if isinstance(m, GatedActivation)]


def test_other_targets_keep_their_activations() -> None:
    model, x = network(nn.SiLU(), nn.Sigmoid())
    for target in ("openvino", "tensorrt"):
        prepared = q.prepare(model, x[:1], target=target)
        assert not [m for m in prepared.modules() if isinstance(m, GatedActivation)]
