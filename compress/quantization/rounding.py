"""Floating-point operations of the exported network, rounded as ONNX Runtime rounds them.

The last bit of a float can decide how a value near a tie is rounded, and such differences grow with
depth (EfficientNet-B1: 12.5 dB with torch's sigmoid). So operations that torch computes in another
order are replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from . import mlas
from .attention import attention_scale, unit
from .graph import attribute, kind


class DeployedFunction(nn.Module):
    """A function that is exported as torch's and computed as ONNX Runtime's."""

    def __init__(self, exported: Callable[..., Tensor], computed: Callable[..., Tensor]) -> None:
        super().__init__()
        self.exported, self.computed = exported, computed

    def forward(self, *inputs: Any) -> Tensor:
        return (self.exported if torch.compiler.is_exporting() else self.computed)(*inputs)


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


class DeployedLayerNorm(nn.Module):
    """Layer norm over the last dimension as ONNX Runtime sums it.

    Behind a sum of two tensors that nothing else reads, the two are one operator with its own sums.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", weight.detach())
        self.register_buffer("bias", bias.detach())

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        weight, bias = self.weight, self.bias
        total = x if more is None else x + more
        if not torch.compiler.is_exporting():
            if more is not None and x.dim() == 3 and x.shape == more.shape:
                return mlas.sum_layer_norm(total, weight, bias, self.eps)
            if x.shape[-1] % 8 == 0:
                return mlas.layer_norm(total, weight, bias, self.eps)
        return nn.functional.layer_norm(total, weight.shape, weight, bias, self.eps)


def _product(a: Tensor, b: Tensor, factor: float | None = None) -> Tensor:
    """As it is exported: the factor stands before the product, and the runtime fuses it."""
    return torch.matmul(a if factor is None else a * factor, b)


_SIGMOID = torch.sigmoid, mlas.logistic
_SILU = nn.functional.silu, mlas.silu
_HARD_SIGMOID = nn.functional.hardsigmoid, mlas.hard_sigmoid
_HARD_SWISH = nn.functional.hardswish, mlas.hard_swish
_GATES: dict[Any, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    nn.Hardswish: _HARD_SWISH,
    nn.functional.hardswish: _HARD_SWISH,
    nn.Hardsigmoid: _HARD_SIGMOID,
    nn.functional.hardsigmoid: _HARD_SIGMOID,
    nn.Sigmoid: _SIGMOID,
    torch.sigmoid: _SIGMOID,
    "sigmoid": _SIGMOID,
    nn.functional.sigmoid: _SIGMOID,
    nn.SiLU: _SILU,
    nn.functional.silu: _SILU,
}
_SOFTMAX = (nn.Softmax, torch.softmax, nn.functional.softmax, "softmax")
_GELU = (nn.GELU, nn.functional.gelu)


def as_the_runtime(model: fx.GraphModule, node: fx.Node) -> None:
    """Replace an operation whose last bits differ between torch and ONNX Runtime."""
    module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    what = node.target if module is None else type(module)
    made: nn.Module | None = None
    inputs: list[Any] = list(node.all_input_nodes)
    if what in _GATES:
        made = DeployedFunction(*_GATES[what])
    elif what in _GELU:
        if _setting(node, module, 1, "approximate", "none") == "none":
            made = DeployedFunction(nn.functional.gelu, mlas.gelu)
    elif what in _SOFTMAX:
        dim = _setting(node, module, 1, "dim", None)
        if isinstance(dim, int):
            made = DeployedFunction(partial(torch.softmax, dim=dim), partial(mlas.softmax, dim=dim))
    elif what in (nn.LayerNorm, nn.functional.layer_norm):
        made = _layer_norm(model, node, module)
        inputs = inputs[:1]
        if made is not None and _is_sum(inputs[0]):
            inputs = inputs[0].all_input_nodes
    elif what is unit:
        dim = int(node.args[1])  # type: ignore[arg-type]
        made = DeployedFunction(partial(unit, dim=dim), partial(mlas.unit, dim=dim))
    elif kind(node) == "matmul" and len(inputs) == 2:
        made = DeployedFunction(_product, mlas.matmul)
        factor = _factor(inputs[0])
        if factor is not None:
            inputs = [inputs[0].all_input_nodes[0], inputs[1], factor]
    elif type(module) is nn.BatchNorm2d and module.affine and module.track_running_stats:
        made = DeployedBatchNorm(module)
    if made is not None:
        replace(model, node, made, *inputs)


def _setting(
    node: fx.Node, module: nn.Module | None, position: int, name: str, default: Any
) -> Any:
    """What a module holds, or a call was given."""
    if module is not None:
        return getattr(module, name)
    given = node.args[position] if len(node.args) > position else default
    return node.kwargs.get(name, given)


def _layer_norm(
    model: fx.GraphModule, node: fx.Node, module: nn.Module | None
) -> DeployedLayerNorm | None:
    """The layer norm of a node, where it is over the last dimension and has weight and bias."""
    shape = _setting(node, module, 1, "normalized_shape", ())
    weight, bias = (_setting(node, module, i, k, None) for i, k in ((2, "weight"), (3, "bias")))
    weight, bias = (
        attribute(model, str(v.target)) if isinstance(v, fx.Node) and v.op == "get_attr" else v
        for v in (weight, bias)
    )
    eps = _setting(node, module, 4, "eps", 1e-5)
    if len(shape) != 1 or not isinstance(weight, Tensor) or not isinstance(bias, Tensor):
        return None
    return DeployedLayerNorm(weight, bias, eps)


def _factor(node: fx.Node) -> float | fx.Node | None:
    """The number that a tensor is multiplied by for one reader, or the node that makes it."""
    if kind(node) != "mul" or len(node.users) != 1 or len(node.args) != 2:
        return None
    factor = node.args[1]
    if isinstance(factor, fx.Node) and factor.target is attention_scale:
        return factor
    return factor if isinstance(factor, float) else None


def _is_sum(node: fx.Node) -> bool:
    """A sum of two tensors for one reader."""
    return kind(node) == "add" and len(node.users) == 1 and len(node.all_input_nodes) == 2


def replace(model: fx.GraphModule, node: fx.Node, made: nn.Module, *inputs: Any) -> None:
    """Let `made` compute from `inputs` what `node` did; the node goes if nothing reads it then."""
    name = f"{node.name}_exact"
    model.add_submodule(name, made)
    with model.graph.inserting_after(node):
        new = model.graph.call_module(name, inputs)
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    if not node.users:
        model.graph.erase_node(node)
