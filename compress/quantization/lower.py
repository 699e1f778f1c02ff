"""Turns the trained network into the exported one: BN folded, plain operators."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from vcompress.bench.errors import UserError

from .deployed import (
    DeployedActivation,
    DeployedLayer,
    DeployedPad,
    DeployedWeight,
    compute_in_integers,
)
from .gates import GatedActivation, deploy
from .graph import attribute, before_zeros, bn_after, called_weight, kind, leaf, padding
from .parts import put
from .placement import is_quantized, placement
from .quantizers import SMALLEST_SCALE, ActivationQuantizer, WeightQuantizer, weight_of
from .trace import inside

_CALLS: dict[Any, tuple[str, ...]] = {
    nn.functional.linear: ("input", "weight", "bias"),
    nn.functional.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
}
"""Functions that are layers, and the names of their arguments."""
LARGEST_BIAS = 2.0**30
"""Steps of a bias at most; sums of products stay far below the other 2^30."""


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


def with_room(
    integers: Tensor, scale: Tensor, bias: Tensor | None, input_scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Integers [O, ...] and steps [O] of a weight under which the bias [O] fits 32 bits, with room
    for the sum that it is added to.

    A channel that is dead but for its bias has a tiny step, in which the bias is more than 2^31:
    the runtime's sum would wrap around. With a larger step its weights become zeros.
    """
    if bias is None or input_scale is None:
        return integers, scale
    least = bias.detach().abs() / (LARGEST_BIAS * input_scale)
    larger = torch.maximum(scale, least.to(scale.dtype))
    ratio = (scale / larger).view(-1, *[1] * (integers.dim() - 1))
    return torch.round(integers * ratio), larger


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
    if any(isinstance(m, ActivationQuantizer) and not m.enabled for m in model.modules()):
        raise UserError("the quantised network was never calibrated: call calibrate() first.")
    if not isinstance(model, fx.GraphModule):
        whole = copy.deepcopy(model).eval()
        for path in description["parts"]:
            put(whole, path, to_export(whole.get_submodule(path)))
        return whole
    source = copy.deepcopy(model).eval()
    _fold_constants(source)
    root, graph = nn.Module(), fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    made: dict[int, str] = {}

    def call(node: fx.Node, module: nn.Module, *args: Any) -> fx.Node:
        name = inside(node.name)
        root.add_module(name, module)
        return graph.call_module(name, args)

    def step(node: fx.Node) -> Tensor | None:
        """The step of what a layer reads, where its target stores biases as integers."""
        rounded = values[before_zeros(node.all_input_nodes[0])]
        return _step_of(root, rounded) if description["unsigned"] else None

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
            read = values[node.all_input_nodes[0]]
            if module.relu and not module.unsigned:  # a signed range does not clip at zero
                clip = nn.ReLU() if module.limit is None else nn.ReLU6()
                root.add_module(f"{name}_relu", clip)
                read = graph.call_module(f"{name}_relu", (read,))
            values[node] = graph.call_module(name, (read,))
        elif isinstance(module, GatedActivation):
            read = values[node.all_input_nodes[0]]
            values[node] = deploy(root, graph, inside(node.name), module, read)
        elif isinstance(module, WeightQuantizer):
            weight = attribute(source, str(node.all_input_nodes[0].target))
            integers, scale = _integers(weight, module)
            values[node] = call(node, DeployedWeight(integers, scale, module.axis))
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            bn, read = _foldable_bn(node), values[node.all_input_nodes[0]]
            values[node] = call(node, _deployed(module, leaf(bn) if bn else None, step(node)), read)
            if bn is not None:
                values[bn] = values[node]
        elif (called := _called_layer(source, root, node, values)) is not None:
            (plain, held, bias), bn = called
            read, given = values[node.all_input_nodes[0]], step(node)
            stored = with_room(held.integers, held.scale, bias, given)
            held = DeployedWeight(*stored, held.axis)
            values[node] = call(node, DeployedLayer(plain, held, bias, given), read)
            if bn is not None:
                values[bn] = values[node]
        elif kind(node) == "pad" and (found := padding(node)) and found[1] != "constant":
            values[node] = call(node, DeployedPad(*found), values[node.all_input_nodes[0]])
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
    if description["unsigned"]:
        compute_in_integers(deployed)
    return deployed.eval()


def _fold_constants(model: fx.GraphModule) -> None:
    """Replace what is computed from parameters alone by its values (Swin's position bias)."""
    known: dict[fx.Node, Any] = {}
    runner = fx.Interpreter(model)
    for node in list(model.graph.nodes):
        if node.op == "get_attr":
            known[node] = attribute(model, str(node.target))
            continue
        read = node.all_input_nodes
        rounds = isinstance(leaf(node), (WeightQuantizer, ActivationQuantizer))
        if node.op == "output" or rounds or not read or not all(n in known for n in read):
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
        with torch.no_grad():
            known[node] = getattr(runner, node.op)(node.target, args, kwargs)
        if isinstance(known[node], Tensor):
            name = f"folded_{node.name}"
            model.register_buffer(name, known[node])
            with model.graph.inserting_after(node):
                value = model.graph.get_attr(name)
            node.replace_all_uses_with(value)
            known[value] = known[node]
    model.graph.eliminate_dead_code()


def _called_layer(
    source: nn.Module, root: nn.Module, node: fx.Node, values: dict[fx.Node, fx.Node]
) -> tuple[tuple[nn.Module, DeployedWeight, Tensor | None], fx.Node | None] | None:
    """What stands for a call of `linear` or `conv2d` with a rounded weight and a bias that is not
    computed: a layer with its weight and bias, and the BN that was folded into them."""
    if node.target not in _CALLS or (place := called_weight(node)) is None:
        return None
    made = values[place]
    held = root.get_submodule(str(made.target)) if made.op == "call_module" else None
    given: dict[str, Any] = {
        **dict(zip(_CALLS[node.target], node.args, strict=False)),
        **node.kwargs,
    }
    options = {k: v for k, v in given.items() if k not in ("input", "weight", "bias")}
    bias: Tensor | None = None
    if isinstance(given.get("bias"), fx.Node):
        if given["bias"].op != "get_attr":
            return None
        bias = attribute(source, str(given["bias"].target)).detach().clone()
    if not isinstance(held, DeployedWeight) or any(
        isinstance(v, fx.Node) for v in options.values()
    ):
        return None
    integers, scale = held.integers, held.scale
    bn = _foldable_bn(node, len(integers))
    if bn is not None:
        norm = leaf(bn)
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        integers, scale, bias = fold_bn(integers, scale, bias, norm)
        held = DeployedWeight(integers, scale, held.axis)
    sizes: Any = tuple(integers.shape)
    layer: nn.Module
    if node.target is nn.functional.linear:
        layer = nn.Linear(sizes[1], sizes[0], bias is not None, device="meta")
    else:
        into = sizes[1] * int(options.get("groups", 1))
        layer = nn.Conv2d(
            into, sizes[0], sizes[2:], bias=bias is not None, device="meta", **options
        )  # fmt: skip
    return (layer, held, bias), bn


def _carry_over(source: nn.Module, root: nn.Module, node: fx.Node, target: str) -> None:
    """Copy a module or a tensor to `root` under a name without dots."""
    name = "kept_" + target.replace(".", "_")
    node.target = name
    if node.op == "call_module":
        module = source.get_submodule(target)
        root.add_module(name, to_export(module) if is_quantized(module) else module)
        return
    value = attribute(source, target)
    if not hasattr(root, name):
        root.register_buffer(name, value.detach() if isinstance(value, Tensor) else value)


def _foldable_bn(node: fx.Node, channels: int | None = None) -> fx.Node | None:
    """The BN to fold into a layer; one that keeps no statistics stays. `channels` are those of a
    layer that is a function call."""
    found = bn_after(node, channels) if kind(node) in ("conv", "linear") else None
    return found if found and getattr(leaf(found), "running_mean", None) is not None else None


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
        weight: Tensor = layer.weight  # type: ignore[assignment]
        fused.weight, fused.bias = fuse_conv_bn_weights(
            weight, bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
        )
        return fused
    weight, quantizer = found
    integers, scale = _integers(weight, quantizer)
    if bn is not None:
        integers, scale, bias = fold_bn(integers, scale, bias, bn)
    if quantizer.axis == 0:
        integers, scale = with_room(integers, scale, bias, input_scale)
    deployed = DeployedWeight(integers, scale, quantizer.axis)
    return DeployedLayer(
        layer, deployed, None if bias is None else bias.detach().clone(), input_scale
    )
