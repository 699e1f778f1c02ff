"""Activations that are a value times a gate, with the gate rounded: they run in integers.

`x * sigmoid(x)` (SiLU) and `x * clip(x / 6 + 1/2, 0, 1)` (hard swish) have no integer kernel, but
their parts have: ONNX Runtime computes a sigmoid of integers by a table, and the product in
integers. The clip of a hard gate is the saturation of a rounding: x, and half a step more, in steps
of 6/255 about 127, is the gate itself in steps of 1/255. Without the half step the gate would be
1/510 too high everywhere, which adds up from layer to layer: 5 dB of a MobileNetV3.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.onnx.ops import symbolic

from .deployed import DeployedActivation
from .mlas import fma
from .quantizers import ActivationQuantizer

STEPS = 255
BELOW = 127
"""The integer of a hard gate half a step below x = 0."""
WIDTH = 6.0
"""Distance from the place where a hard gate is 0 to the one where it is 1."""

_KINDS: dict[Any, str] = {
    nn.SiLU: "silu",
    F.silu: "silu",
    nn.Hardswish: "hardswish",
    F.hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
    F.hardsigmoid: "hardsigmoid",
}

_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid,
}  # fmt: skip


def gate_kind(what: Any) -> str | None:
    """`silu`, `hardswish` or `hardsigmoid` of a function or of the class of a module."""
    return _KINDS.get(what) if callable(what) else None


class GatedActivation(nn.Module):
    """SiLU, hard swish or hard sigmoid whose gate is rounded to 1/255; the product is not."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        gate = ActivationQuantizer(unsigned=True, fixed=(1 / STEPS, 0))
        self.gate_quantizer = gate.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        gate, plain = self.gate_quantizer, _PLAIN[self.kind]
        if not gate.enabled or gate.observer is not None:
            return plain(x)
        if self.kind == "silu":
            rounded: Tensor = gate(torch.sigmoid(x))
            return x * rounded
        made: Tensor = gate(x / WIDTH + 0.5)
        return x * made if self.kind == "hardswish" else made

    def extra_repr(self) -> str:
        return self.kind


class DeployedHardGate(DeployedActivation):
    """A hard gate of rounded values. Exported as a sum with half a step that is rounded in steps of
    6/255 and read in steps of 1/255: ONNX Runtime's QLinearAdd."""

    wide: Tensor
    below: Tensor
    one: Tensor
    half_step: Tensor
    no_offset: Tensor

    def __init__(self, quantizer: ActivationQuantizer, given: DeployedActivation) -> None:
        super().__init__(quantizer)
        self.given = (given,)  # in a tuple: it belongs to the graph, not to this module
        self.register_buffer("wide", torch.tensor(WIDTH / STEPS))
        self.register_buffer("below", torch.tensor(BELOW, dtype=torch.uint8))
        self.register_buffer("one", torch.ones(1, dtype=torch.uint8))
        self.register_buffer("half_step", self.wide / 2)
        self.register_buffer("no_offset", torch.tensor(0, dtype=torch.uint8))
        self.to(quantizer.log_scale.device)

    def in_its_unit(self, unrounded: Tensor) -> Tensor:
        """The gate of what is rounded, which is x and half a step."""
        return unrounded / WIDTH + BELOW / STEPS

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            kind = x.dtype
            wide, scale = self.wide.to(kind), self.scale.to(kind)
            step = (self.one, self.half_step.to(kind), self.no_offset)
            total = x + symbolic("DequantizeLinear", step, dtype=kind, shape=(1,))
            wanted = (total, wide, self.below)
            q = symbolic("QuantizeLinear", wanted, dtype=torch.uint8, shape=x.shape)
            wanted = (q, scale, self.zero_point)
            return symbolic("DequantizeLinear", wanted, dtype=kind, shape=x.shape)
        (given,) = self.given
        ratio, half = given.scale / self.wide, self.half_step / self.wide
        start = BELOW - given.zero_point.float() * ratio
        total = fma(given.stored(x), ratio.expand_as(x), start + half)
        return total.round_().clamp_(0, STEPS).mul_(self.scale)


def deploy(
    root: nn.Module, graph: fx.Graph, name: str, gated: GatedActivation, x: fx.Node
) -> fx.Node:
    """The nodes of a gated activation of `x` in an exported graph, named after `name`."""
    gate = f"{name}_gate_q"
    if gated.kind == "silu":
        root.add_module(gate, DeployedActivation(gated.gate_quantizer))
        rounded = graph.call_module(gate, (graph.call_function(torch.sigmoid, (x,)),))
    else:
        given = root.get_submodule(str(x.target))
        assert isinstance(given, DeployedActivation)
        root.add_module(gate, DeployedHardGate(gated.gate_quantizer, given))
        rounded = graph.call_module(gate, (x,))
    if gated.kind == "hardsigmoid":
        return rounded
    return graph.call_function(operator.mul, (x, rounded))
