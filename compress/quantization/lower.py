"""From the network that was trained to the one that is exported: BN folded, plain operators."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.onnx.ops import symbolic

from vcompress.bench.errors import UserError

from .graph import kind, leaf
from .placement import placement
from .quantizers import SMALLEST_SCALE, ActivationQuantizer, WeightQuantizer, weight_of


class DeployedActivation(nn.Module):
    """Rounds one activation. Exported as a QuantizeLinear and a DequantizeLinear."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        zero = int(quantizer.zero_point)
        self.range = (quantizer.low - zero, quantizer.high - zero)
        kind = torch.uint8 if quantizer.unsigned else torch.int8
        self.register_buffer("scale", quantizer.scale().clone())
        self.register_buffer("zero_point", quantizer.zero_point.detach().to(kind))

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            scale = (self.scale.to(x.dtype), self.zero_point)
            q = symbolic("QuantizeLinear", (x, *scale), dtype=self.zero_point.dtype, shape=x.shape)
            return symbolic("DequantizeLinear", (q, *scale), dtype=x.dtype, shape=x.shape)
        return torch.div(x, self.scale).round_().clamp_(*self.range).mul_(self.scale)


class DeployedWeight(nn.Module):
    """A weight as int8 with one step per slice along `axis`. Exported as a DequantizeLinear."""

    integers: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, integers: Tensor, scale: Tensor, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("integers", integers.to(torch.int8))
        self.register_buffer("scale", scale.clone())
        self.register_buffer("zero_point", torch.zeros_like(scale, dtype=torch.int8))

    def forward(self) -> Tensor:
        if torch.compiler.is_exporting():
            return symbolic(
                "DequantizeLinear", (self.integers, self.scale, self.zero_point),
                {"axis": self.axis}, dtype=self.scale.dtype, shape=self.integers.shape,
            )
        shape = [1] * self.integers.dim()
        shape[self.axis] = -1
        return self.integers * self.scale.view(shape)


class DeployedBias(nn.Module):
    """A bias as int32 in steps of input step * weight step, as integer arithmetic adds it."""

    integers: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, bias: Tensor, scale: Tensor) -> None:
        super().__init__()
        rounded = torch.round(bias.double() / scale.double()).clamp_(-(2**31), 2**31 - 1)
        self.register_buffer("integers", rounded.to(torch.int32))
        self.register_buffer("scale", scale.clone())
        self.register_buffer("zero_point", torch.zeros_like(scale, dtype=torch.int32))

    def forward(self) -> Tensor:
        if torch.compiler.is_exporting():
            return symbolic(
                "DequantizeLinear", (self.integers, self.scale, self.zero_point),
                {"axis": 0}, dtype=self.scale.dtype, shape=self.integers.shape,
            )
        return self.integers * self.scale


class DeployedLayer(nn.Module):
    """A convolution or a linear layer with a deployed weight and its BN folded in.

    With the step of its input the bias is stored as integers too (ONNX Runtime); without, it
    stays in floating point (TensorRT).
    """

    def __init__(
        self,
        layer: nn.Module,
        weight: DeployedWeight,
        bias: Tensor | None,
        input_scale: Tensor | None,
    ) -> None:
        super().__init__()
        self.quantised_weight = weight
        self.quantised_bias: DeployedBias | None = None
        if bias is not None and input_scale is not None:
            self.quantised_bias = DeployedBias(bias, weight.scale * input_scale)
            bias = None
        self.register_buffer("bias", bias)
        self.plain = copy.copy(layer)  # for its stride, padding, ...
        self.plain._parameters = dict.fromkeys(layer._parameters)
        self.plain._modules = {}

    def forward(self, x: Tensor) -> Tensor:
        plain, weight, bias = self.plain, self.quantised_weight(), self.bias
        if self.quantised_bias is not None:
            bias = self.quantised_bias()
        if isinstance(plain, nn.Linear):
            return nn.functional.linear(x, weight, bias)
        if isinstance(plain, nn.ConvTranspose2d):
            return nn.functional.conv_transpose2d(
                x, weight, bias, plain.stride, plain.padding,  # type: ignore[arg-type]
                plain.output_padding, plain.groups, plain.dilation,  # type: ignore[arg-type]
            )
        assert isinstance(plain, nn.Conv2d)
        return plain._conv_forward(x, weight, bias)


def fold_bn(
    integers: Tensor, scale: Tensor, bias: Tensor | None, bn: nn.modules.batchnorm._BatchNorm
) -> tuple[Tensor, Tensor, Tensor]:
    """A BN moved into the step and the bias of the layer before it; exact.

    The sign of gamma goes into the integers. A channel whose gamma is zero becomes zeros with
    an ordinary step, and its bias carries beta.

    Args:
        integers: [O, ...] in -127..127.
        scale: [O], positive.
        bias: [O] or None.

    Returns:
        integers, scale and bias of the folded layer.
    """
    assert bn.running_mean is not None and bn.running_var is not None
    mean, variance = bn.running_mean.double(), bn.running_var.double()
    gamma = torch.ones_like(mean) if bn.weight is None else bn.weight.detach().double()
    beta = torch.zeros_like(mean) if bn.bias is None else bn.bias.detach().double()
    factor = gamma / torch.sqrt(variance + bn.eps)
    start = torch.zeros_like(mean) if bias is None else bias.detach().double()
    folded_bias = (beta + (start - mean) * factor).to(scale.dtype)
    folded = scale.double() * factor.abs()
    sign = torch.sign(torch.where(folded > SMALLEST_SCALE, factor, 0.0)).to(integers.dtype)
    sign = sign.view(-1, *[1] * (integers.dim() - 1))
    return integers * sign, _safe_scale(folded).to(scale.dtype), folded_bias


def _safe_scale(scale: Tensor) -> Tensor:
    """Replace steps that vanished; the integers of such a channel are zeros or as good as."""
    alive = scale > SMALLEST_SCALE
    typical = scale[alive].median() if bool(alive.any()) else torch.ones_like(scale[:1])
    return torch.where(alive, scale, typical.to(scale.dtype))


def _integers(weight: Tensor, quantizer: WeightQuantizer) -> tuple[Tensor, Tensor]:
    shape = [1] * weight.dim()
    shape[quantizer.axis] = -1
    scale = quantizer.scale()
    rounded = torch.div(weight.detach(), scale.view(shape)).round_()
    return rounded.clamp_(-quantizer.high, quantizer.high), scale


def to_export(model: nn.Module) -> nn.Module:
    """A copy in evaluation that computes the same from folded weights and plain rounding.

    Raises:
        UserError: the network is not from `prepare` or `restore`, or was never calibrated.
    """
    description = placement(model)
    assert isinstance(model, fx.GraphModule)
    if any(isinstance(m, ActivationQuantizer) and not m.enabled for m in model.modules()):
        raise UserError("the quantised network was never calibrated: call calibrate() first.")
    source = copy.deepcopy(model).eval()
    root, graph = nn.Module(), fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    made: dict[int, str] = {}

    def call(node: fx.Node, module: nn.Module, *args: Any) -> fx.Node:
        root.add_module(node.name, module)
        return graph.call_module(node.name, args)

    repeats = {e["node"]: f"activation_quantizers.{e['quantizer']}" for e in description["repeat"]}
    for node in source.graph.nodes:
        if node in values:  # a BN that was folded into the layer before it
            continue
        module = leaf(node)
        if kind(node) == "identity" and isinstance(module, nn.Module):
            values[node] = values[node.all_input_nodes[0]]
        elif isinstance(module, ActivationQuantizer):
            name = made.get(id(module))
            if name is None:
                name = made[id(module)] = str(node.target).rpartition(".")[2] + "_q"
                root.add_module(name, DeployedActivation(module))
            values[node] = graph.call_module(name, (values[node.all_input_nodes[0]],))
        elif isinstance(module, WeightQuantizer):
            place: Any = source
            for part in str(node.all_input_nodes[0].target).split("."):
                place = getattr(place, part)
            integers, scale = _integers(place, module)
            values[node] = call(node, DeployedWeight(integers, scale, module.axis))
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            bn, read = _bn_after(node), values[node.all_input_nodes[0]]
            step = _step_of(root, read) if description["unsigned"] else None
            values[node] = call(node, _deployed(module, bn and leaf(bn), step), read)
            if bn is not None:
                values[bn] = values[node]
        else:
            values[node] = graph.node_copy(node, lambda n: values[n])
            if node.op in ("call_module", "get_attr"):
                _carry_over(source, root, values[node], str(node.target))
        if node.name in repeats:
            quantizer = source.get_submodule(repeats[node.name])
            values[node] = graph.call_module(made[id(quantizer)], (values[node],))
    deployed = fx.GraphModule(root, graph, class_name="Deployed")
    deployed.graph.eliminate_dead_code()
    deployed.graph.lint()
    deployed.recompile()
    deployed.delete_all_unused_submodules()
    return deployed.eval()


def _carry_over(source: nn.Module, root: nn.Module, node: fx.Node, target: str) -> None:
    """Copy a module or a tensor to `root` under a name without dots."""
    name = "kept_" + target.replace(".", "_")
    node.target = name
    if node.op == "call_module":
        root.add_module(name, source.get_submodule(target))
        return
    value: Any = source
    for part in target.split("."):
        value = getattr(value, part)
    if not hasattr(root, name):
        root.register_buffer(name, value.detach() if isinstance(value, Tensor) else value)


def _bn_after(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    if len(users) == 1 and kind(users[0]) == "bn" and kind(node) in ("conv", "linear"):
        bn = leaf(users[0])
        if isinstance(bn, nn.modules.batchnorm._BatchNorm) and bn.running_mean is not None:
            return users[0]
    return None


def _step_of(root: nn.Module, node: fx.Node) -> Tensor | None:
    """The step of a tensor that was rounded just before."""
    module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module.scale if isinstance(module, DeployedActivation) else None


def _deployed(layer: nn.Module, bn: nn.Module | None, input_scale: Tensor | None) -> nn.Module:
    assert bn is None or isinstance(bn, nn.modules.batchnorm._BatchNorm)
    found = weight_of(layer)
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    if found is None:
        if bn is None:
            return layer
        fused = copy.deepcopy(layer)
        assert bn.running_mean is not None and bn.running_var is not None
        fused.weight, fused.bias = fuse_conv_bn_weights(  # type: ignore[assignment]
            layer.weight, bias, bn.running_mean, bn.running_var, bn.eps,  # type: ignore[arg-type]
            bn.weight, bn.bias,
        )
        return fused
    weight, quantizer = found
    integers, scale = _integers(weight, quantizer)
    if bn is not None:
        integers, scale, bias = fold_bn(integers, scale, bias, bn)
    deployed = DeployedWeight(integers, scale, quantizer.axis)
    return DeployedLayer(
        layer, deployed, None if bias is None else bias.detach().clone(), input_scale
    )
