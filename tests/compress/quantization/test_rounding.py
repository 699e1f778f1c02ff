"""Bit for bit what ONNX Runtime computes, where torch differs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from vcompress.compress.quantization import mlas
from vcompress.compress.quantization.deployed import (
    DeployedActivation,
    DeployedGlobalPool,
    compute_in_integers,
)
from vcompress.compress.quantization.quantizers import ActivationQuantizer
from vcompress.compress.quantization.rounding import (
    DeployedBatchNorm,
    DeployedFunction,
    DeployedLayerNorm,
)
from vcompress.export.onnx_export import export
from vcompress.export.runtime import run_onnx


def norm() -> nn.BatchNorm2d:
    torch.manual_seed(0)
    made = nn.BatchNorm2d(3).eval()
    for tensor in (made.weight.data, made.bias.data, made.running_mean):
        tensor.normal_()
    made.running_var.uniform_(0.1, 3.0)
    return made


@pytest.mark.parametrize(
    "plain",
    [nn.Hardswish(), nn.Hardsigmoid(), nn.Sigmoid(), nn.SiLU(), nn.GELU(), norm()],
    ids=lambda value: type(value).__name__,
)
def test_values_are_those_of_onnx_runtime(plain: nn.Module, tmp_path: Path) -> None:
    ours = torch.fx.symbolic_trace(nn.Sequential(plain).eval())
    compute_in_integers(ours)
    x = 3 * torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    export(ours, tmp_path / "m.onnx", ("input", (3, 12, 12)))
    (found,) = run_onnx(tmp_path / "m.onnx", x.numpy(), optimised=True)
    theirs = torch.from_numpy(found)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs)
        assert int((plain(x) != theirs).sum()) > 1000
        assert torch.allclose(plain(x), ours(x), atol=1e-5)


class Ways(nn.Module):
    """Every way to write what is replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.gate, self.last = norm(), nn.SiLU(), nn.LayerNorm(12, eps=1e-6)
        self.gelu, self.tanh = nn.GELU(), nn.GELU("tanh")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.gate(self.norm(x))
        x = torch.sigmoid(x) + x.sigmoid() + nn.functional.sigmoid(x) + nn.functional.silu(x)
        x = self.gelu(x) + nn.functional.gelu(x) + self.tanh(x)
        x = x.softmax(-1) + torch.softmax(x, 3) + nn.functional.softmax(x, dim=-1)
        x = self.last(x) * 2
        x = nn.functional.layer_norm(x, (12,), self.last.weight, self.last.bias, 1e-3)
        return torch.matmul(x, x.mT) + x @ x.mT


def test_every_way_to_write_them_is_found() -> None:
    graph = torch.fx.symbolic_trace(Ways().eval())
    compute_in_integers(graph)
    modules = [graph.get_submodule(n.target) for n in graph.graph.nodes if n.op == "call_module"]
    assert sum(isinstance(m, DeployedBatchNorm) for m in modules) == 1
    computed = [getattr(m.computed, "func", m.computed) for m in modules
                if isinstance(m, DeployedFunction)]  # fmt: skip
    assert computed.count(mlas.silu) == 2
    assert computed.count(mlas.logistic) == 3
    assert computed.count(mlas.gelu) == 2
    assert computed.count(mlas.softmax) == 3
    assert computed.count(mlas.matmul) == 2
    assert [m.eps for m in graph.modules() if isinstance(m, DeployedLayerNorm)] == [1e-6, 1e-3]


class Pooled(nn.Module):
    """A rounded map, its mean over height and width written in one of three ways, rounded."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.pool = way, nn.AdaptiveAvgPool2d((1, 1))
        steps = []
        for scale, zero_point in ((0.031, 100), (0.0173, 128)):
            quantizer = ActivationQuantizer(unsigned=True)
            quantizer.set_range(scale, zero_point)
            steps.append(DeployedActivation(quantizer))
        self.before_q, self.after_q = steps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before_q(x)
        if self.way == "module":
            x = self.pool(x)
        elif self.way == "function":
            x = nn.functional.adaptive_avg_pool2d(x, 1)
        else:
            x = x.mean((2, 3), keepdim=True)
        rounded: torch.Tensor = self.after_q(x)
        return rounded


class Leaves(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, name: str) -> bool:
        return isinstance(m, DeployedActivation) or super().is_leaf_module(m, name)


@pytest.mark.parametrize("way", ["module", "function", "method"])
def test_a_global_pool_between_rounded_maps_is_that_of_onnx_runtime(
    way: str, tmp_path: Path
) -> None:
    plain = Pooled(way).eval()
    graph = torch.fx.GraphModule(plain, Leaves().trace(plain))
    compute_in_integers(graph)
    assert any(isinstance(m, DeployedGlobalPool) for m in graph.modules())
    x = 2 * torch.randn(64, 32, 6, 6, generator=torch.Generator().manual_seed(0))
    export(graph, tmp_path / "m.onnx", ("input", (32, 6, 6)))
    (found,) = run_onnx(tmp_path / "m.onnx", x.numpy(), optimised=True)
    with torch.no_grad():
        assert torch.equal(graph(x), torch.from_numpy(found))
