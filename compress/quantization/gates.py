"""Activations that are a value times a gate, with the gate rounded: they run in integers.

`x * sigmoid(x)` (SiLU) and `x * clip(x / 6 + 1/2, 0, 1)` (hard swish) have no integer kernel, but
their parts have: ONNX Runtime computes a sigmoid of integers by a table, and the product in
integers. The clip of a hard gate is the saturation of a rounding: in steps of 6/255 about 128 an
integer is the gate itself, in steps of 1/255.
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
from .quantizers import ActivationQuantizer

STEPS = 255
MIDDLE = 128
"""The integer of a hard gate at x = 0: 128/255, where the float one is 1/2."""
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
        made: Tensor = gate(x / WIDTH + MIDDLE / STEPS)
        return x * made if self.kind == "hardswish" else made

    def extra_repr(self) -> str:
        return self.kind


class DeployedHardGate(DeployedActivation):
    """A hard gate of rounded values. Exported as an identity that is rounded in steps of 6/255 and
    read in steps of 1/255: ONNX Runtime's QLinearLeakyRelu, a table."""

    rounds_activation = False
    wide: Tensor
    middle: Tensor

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__(quantizer)
        self.register_buffer("wide", torch.tensor(WIDTH / STEPS))
        self.register_buffer("middle", torch.tensor(MIDDLE, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            same = symbolic("LeakyRelu", (x,), {"alpha": 1.0}, dtype=x.dtype, shape=x.shape)
            wide, scale = self.wide.to(x.dtype), self.scale.to(x.dtype)
            q = symbolic(
                "QuantizeLinear", (same, wide, self.middle), dtype=torch.uint8, shape=x.shape
            )
            return symbolic(
                "DequantizeLinear", (q, scale, self.zero_point), dtype=x.dtype, shape=x.shape
            )
        stored = torch.div(x, self.wide).round_().add_(MIDDLE)
        return stored.clamp_(0, STEPS).mul_(self.scale)


def deploy(
    root: nn.Module, graph: fx.Graph, name: str, gated: GatedActivation, x: fx.Node
) -> fx.Node:
    """The nodes of a gated activation of `x` in an exported graph, named after `name`."""
    gate = f"{name}_gate_q"
    if gated.kind == "silu":
        root.add_module(gate, DeployedActivation(gated.gate_quantizer))
        rounded = graph.call_module(gate, (graph.call_function(torch.sigmoid, (x,)),))
    else:
        root.add_module(gate, DeployedHardGate(gated.gate_quantizer))
        rounded = graph.call_module(gate, (x,))
    if gated.kind == "hardsigmoid":
        return rounded
    return graph.call_function(operator.mul, (x, rounded))
