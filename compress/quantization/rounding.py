"""Floating-point operations of the exported network, rounded as ONNX Runtime rounds them.

Between rounded tensors the last bit of a float decides where it lies next to a tie, and what a tie
decides grows with depth. Gates and batch norms that torch computes in another order are replaced.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, fx, nn


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a * b + c with one rounding, as the processor does it."""
    return (a.double() * b.double() + c.double()).float()


SIXTH = float(torch.tensor(1.0) / 6)
"""In float32, as it stands in the file."""


class DeployedHardSigmoid(nn.Module):
    """HardSigmoid as ONNX Runtime rounds it: torch divides by 6 after the clip."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return nn.functional.hardsigmoid(x)
        return torch.mul(x, SIXTH).add_(0.5).clamp_(0.0, 1.0)


class DeployedHardSwish(DeployedHardSigmoid):
    """HardSwish, which ONNX Runtime opens into x * HardSigmoid(x)."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return nn.functional.hardswish(x)
        return super().forward(x).mul_(x)


_LOGISTIC_ABOVE = (
    4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05, 8.51377133304701e-03,
    2.48287947061529e-01,
)  # fmt: skip
_LOGISTIC_BELOW = (
    6.10247389755681e-13, 5.76102136993427e-09, 6.29106785017040e-06, 1.70198817374094e-03,
    1.16817656904453e-01, 9.93151921023180e-01,
)  # fmt: skip


def logistic(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)) as ONNX Runtime's MLAS computes it: a quotient of two polynomials in x^2.

    It differs from torch's in the last bits of three values in five. After a rounded tensor a
    gate has 256 values at most; where one of them lies next to a tie, all that meet it are off by
    a step (EfficientNet-B1: 12.5 dB).
    """
    x = x.clamp(-18.0, 18.0)
    square = x * x
    above, below = (
        functools.reduce(
            lambda sum_, c: fma(sum_, square, torch.tensor(c)),
            coefficients[1:],
            torch.full_like(square, coefficients[0]),
        )
        for coefficients in (_LOGISTIC_ABOVE, _LOGISTIC_BELOW)
    )
    return above.mul_(x).div_(below).add_(0.5).clamp_(0.0, 1.0)


class DeployedSigmoid(nn.Module):
    """Sigmoid as ONNX Runtime computes it."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return torch.sigmoid(x)
        return logistic(x)


class DeployedSiLU(nn.Module):
    """SiLU, which is exported as x * Sigmoid(x)."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return nn.functional.silu(x)
        return logistic(x).mul_(x)


class DeployedBatchNorm(nn.Module):
    """A batch norm that follows no convolution, with ONNX Runtime's two roundings for each value.

    torch fuses the product and the sum into one, which differs in the last bit of every fourth
    value: DenseNet-201's 201 of them agreed to 23 dB.
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        if torch.compiler.is_exporting():
            out: Tensor = norm(x)
            return out
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        shape = [1, -1] + [1] * (x.dim() - 2)
        return (x * scale.view(shape)).add_(shift.view(shape))


_GATES: dict[Any, type[nn.Module]] = {
    nn.Hardswish: DeployedHardSwish,
    nn.Hardsigmoid: DeployedHardSigmoid,
    nn.functional.hardswish: DeployedHardSwish,
    nn.functional.hardsigmoid: DeployedHardSigmoid,
    nn.Sigmoid: DeployedSigmoid,
    torch.sigmoid: DeployedSigmoid,
    "sigmoid": DeployedSigmoid,
    nn.functional.sigmoid: DeployedSigmoid,
    nn.SiLU: DeployedSiLU,
    nn.functional.silu: DeployedSiLU,
}


def as_the_runtime(model: fx.GraphModule, node: fx.Node) -> None:
    """Replace a gate or a batch norm whose last bits differ between torch and ONNX Runtime."""
    made: nn.Module | None = None
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        if type(module) in _GATES:
            made = _GATES[type(module)]()
        elif type(module) is nn.BatchNorm2d and module.affine and module.track_running_stats:
            made = DeployedBatchNorm(module)
    elif node.op in ("call_function", "call_method") and node.target in _GATES:
        made = _GATES[node.target]()
    if made is not None:
        replace(model, node, made, *node.all_input_nodes)


def replace(model: fx.GraphModule, node: fx.Node, made: nn.Module, *inputs: fx.Node) -> None:
    """Let `made` compute from `inputs` what `node` did; the node goes if nothing reads it then."""
    name = f"{node.name}_exact"
    model.add_submodule(name, made)
    with model.graph.inserting_after(node):
        new = model.graph.call_module(name, inputs)
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    if not node.users:
        model.graph.erase_node(node)
