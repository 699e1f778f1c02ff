"""Modules of the exported network, with the arithmetic of ONNX Runtime.

Near a tie, rounding turns a last-bit difference into a whole step. In a deep network such steps add
up until two implementations differ by about the quantisation error. So where ONNX Runtime computes
in integers, these modules compute the same integers in the same order. The network in torch then
equals the file bit for bit, and any difference is a fault.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.onnx.ops import symbolic

from .graph import before_zeros, kind, written_as
from .mlas import fma
from .quantizers import ActivationQuantizer, transposed
from .rounding import as_the_runtime, replace
from .trace import SameConv2d, pad_same


class DeployedActivation(nn.Module):
    """Rounds one activation. Exported as a QuantizeLinear and a DequantizeLinear."""

    scale: Tensor
    zero_point: Tensor
    rounds_activation = True
    """By this `export.parity` knows it."""

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

    def stored(self, x: Tensor) -> Tensor:
        """The stored integers of rounded values, as float32."""
        return torch.div(x, self.scale).round_().add_(self.zero_point)

    def value(self, stored: Tensor) -> Tensor:
        """Values of stored integers that are not rounded yet."""
        return stored.round_().sub_(self.zero_point).mul_(self.scale)


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
                "DequantizeLinear",
                (self.integers, self.scale, self.zero_point),
                {"axis": self.axis},
                dtype=self.scale.dtype,
                shape=self.integers.shape,
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
                "DequantizeLinear",
                (self.integers, self.scale, self.zero_point),
                {"axis": 0},
                dtype=self.scale.dtype,
                shape=self.integers.shape,
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
        self.steps: tuple[Tensor, Tensor | None] | None = None
        self.bias: Tensor | None
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
        if self.steps is not None and not torch.compiler.is_exporting():
            return self._in_integers(x, *self.steps)
        bias = self.bias if self.quantised_bias is None else self.quantised_bias()
        return self._run(x, self.quantised_weight(), bias)

    def _in_integers(self, x: Tensor, step: Tensor, out_step: Tensor | None) -> Tensor:
        """As QLinearConv and QGemm do it: an exact sum of integers, one multiplication, rounding.

        Without `out_step` nothing is rounded. A linear layer of more than two dimensions is a
        MatMulIntegerToFloat, and its bias is added to the floats.
        """
        integers = torch.div(x, step).round_()
        weight = self.quantised_weight.integers.float()
        total = self._run(integers, weight, None)
        if float(total.abs().max()) >= 2**24:  # float32 no longer holds every integer
            total = self._run(integers.double(), weight.double(), None)
        linear = isinstance(self.plain, nn.Linear)
        shape = [-1] if linear else [1, -1, 1, 1]
        factor = step * self.quantised_weight.scale
        if linear and x.dim() > 2:
            made = total.float().mul_(factor)
            return made if self.quantised_bias is None else made.add_(self.quantised_bias())
        if self.quantised_bias is not None:
            total = total.double() + self.quantised_bias.integers.view(shape)
        if out_step is None:
            return total.float().mul_(factor.view(shape))
        return (total.float() * (factor / out_step).view(shape)).round_().mul_(out_step)

    def _run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        plain = self.plain
        if isinstance(plain, nn.Linear):
            return nn.functional.linear(x, weight, bias)
        if isinstance(plain, nn.ConvTranspose2d):
            return transposed(plain, x, weight, bias)
        assert isinstance(plain, nn.Conv2d)
        if isinstance(plain, SameConv2d):
            x = pad_same(x, plain)
        out: Tensor = plain._conv_forward(x, weight, bias)
        return out


class DeployedPad(nn.Module):
    """Padding by values of the map itself, as one Pad: behind a rounding it moves integers."""

    edges: Tensor

    def __init__(self, pads: tuple[int, ...], mode: str) -> None:
        super().__init__()
        self.pads, self.mode = pads, mode
        left, right, top, bottom = (*pads, 0, 0, 0, 0)[:4]
        self.register_buffer("edges", torch.tensor([0, 0, top, left, 0, 0, bottom, right]))

    def forward(self, x: Tensor) -> Tensor:
        made = nn.functional.pad(x, self.pads, self.mode)
        if not torch.compiler.is_exporting():
            return made
        mode = {"replicate": "edge", "circular": "wrap"}.get(self.mode, self.mode)
        shape = made.shape
        return symbolic("Pad", (x, self.edges), {"mode": mode}, dtype=x.dtype, shape=shape)


class DeployedSum(nn.Module):
    """QLinearAdd: fused multiply-adds from the second operand to the first."""

    def __init__(self, a: DeployedActivation, b: DeployedActivation, out: DeployedActivation):
        super().__init__()
        self.parts = (a, b, out)  # in a tuple: they belong to the graph, not to this module

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return a + b
        first, second, out = self.parts
        ratio_a, ratio_b = first.scale / out.scale, second.scale / out.scale
        zero_a, zero_b, zero = (p.zero_point.float() for p in (first, second, out))
        start = zero - fma(zero_a, ratio_a, ratio_b * zero_b)
        total = fma(second.stored(b), ratio_b, start)
        return out.value(fma(first.stored(a), ratio_a, total))


class DeployedProduct(nn.Module):
    """QLinearMul: the product of the integers, one multiplication, the zero point."""

    def __init__(self, a: DeployedActivation, b: DeployedActivation, out: DeployedActivation):
        super().__init__()
        self.parts = (a, b, out)  # in a tuple: they belong to the graph, not to this module

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return a * b
        first, second, out = self.parts
        ratio = first.scale * second.scale / out.scale
        product = torch.div(a, first.scale).round_() * torch.div(b, second.scale).round_()
        return out.value(product * ratio + out.zero_point.float())


class DeployedGlobalPool(nn.Module):
    """QLinearGlobalAveragePool: the sum of the integers, one multiplication, rounding.

    It stands behind the pooling itself, which is exported, and leaves one alone that is not over
    the whole map.
    """

    def __init__(self, given: DeployedActivation, out: DeployedActivation) -> None:
        super().__init__()
        self.parts = (given, out)  # in a tuple: they belong to the graph, not to this module

    def forward(self, x: Tensor, pooled: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return pooled
        if x.dim() != 4 or pooled.shape[:2] != x.shape[:2] or pooled[0, 0].numel() > 1:
            return pooled
        given, out = self.parts
        total = torch.div(x, given.scale).round_().sum((2, 3))
        ratio = given.scale / (out.scale * float(x.shape[2] * x.shape[3]))
        return total.mul_(ratio).round_().mul_(out.scale).view(pooled.shape)


_IN_INTEGERS: dict[str, Callable[..., nn.Module]] = {"add": DeployedSum, "mul": DeployedProduct}


def compute_in_integers(model: fx.GraphModule) -> None:
    """Let each operation between rounded tensors compute as ONNX Runtime's int8 operator."""
    for node in list(model.graph.nodes):
        as_the_runtime(model, node)
    for node in model.graph.nodes:
        layer = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, DeployedLayer) and isinstance(layer.plain, nn.Linear):
            given = _rounding(model, node.all_input_nodes[0])
            layer.steps = None if given is None else (given.scale, None)
    for node in list(model.graph.nodes):
        out = _rounding(model, node)
        if out is None:
            continue
        made_by = node.all_input_nodes[0]
        read = made_by.all_input_nodes
        if made_by.op == "call_module":
            read = [before_zeros(n) for n in read]
        before = [r for n in read if (r := _rounding(model, n)) is not None]
        if len(made_by.users) != 1 or len(before) != len(made_by.all_input_nodes):
            continue
        module = model.get_submodule(str(made_by.target)) if made_by.op == "call_module" else None
        if isinstance(module, DeployedLayer):
            module.steps = (before[0].scale, out.scale)
        elif written_as(made_by) in ("adaptive_avgpool", "mean"):
            pool = DeployedGlobalPool(before[0], out)
            replace(model, made_by, pool, made_by.all_input_nodes[0], made_by)
        elif kind(made_by) in _IN_INTEGERS and len(before) == 2 and not made_by.kwargs:
            replace(
                model, made_by, _IN_INTEGERS[kind(made_by)](*before, out), *made_by.all_input_nodes
            )
    model.recompile()
    model.delete_all_unused_submodules()


def _rounding(model: fx.GraphModule, node: fx.Node) -> DeployedActivation | None:
    if node.op != "call_module":
        return None
    module = model.get_submodule(str(node.target))
    return module if isinstance(module, DeployedActivation) else None
