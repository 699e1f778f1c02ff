"""TensorRT and TensorRT-RTX with explicit quantisation: int8, symmetric, inputs only.

The inputs of convolutions and matrix products are quantised and their outputs are not, so that
convolution, batch norm and ReLU stay together. A residual addition has its shortcut alone
quantised, so the other branch fuses with it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx, nn

from ..graph import activations_of, kind, leaf, source
from ..trace import shape
from . import Keep, Plan, Target, place_inputs


def place(nodes: Sequence[fx.Node], keep: Keep) -> Plan:
    """See the module's text; `nodes` in order of execution."""
    return place_inputs(nodes, lambda node: keep(node) or _why_not(node, kind(node)))


def _why_not(node: fx.Node, what: str) -> str | None:
    module = leaf(node)
    if what == "conv" and isinstance(module, nn.Conv2d):
        into, out = module.in_channels, module.out_channels
        if module.groups > 1:
            if into % 8 or out % 8:
                return f"grouped convolution with {into} and {out} channels, not multiples of 8"
            if min(module.kernel_size) < 3:
                return "grouped convolution with a kernel smaller than 3"
        elif node.all_input_nodes[0].op != "placeholder" and (
            (into < 16 and into % 8) or (out < 16 and out % 8)
        ):
            return f"small convolution with {into} and {out} channels, not multiples of 8"
    if what in ("conv", "linear") and _after_global_pool(node):
        return "one position per image: a gate or a classifier gains nothing"
    if what == "linear" and isinstance(module, nn.Linear):
        if len(shape(node) or ()) == 2:
            return "one row per image: a matrix product with M = 1 gains nothing"
        if min(module.in_features, module.out_features) < 16:
            return "fewer than 16 columns or rows"
    return None


def _after_global_pool(node: fx.Node) -> bool:
    """Whether only layers and activations stand between a global pool and this node."""
    before = source(activations_of(node)[0])
    while kind(before) in ("conv", "linear", "bn", "relu", "relu6", "activation", "gate"):
        before = source(activations_of(before)[0])
    return kind(before) == "global_pool"


TARGET = Target(
    name="tensorrt",
    unsigned=False,
    repeat=False,
    place=place,
    runtime="tensorrt",
    device="cuda",
    unmeasured="TensorRT runs engines, which are built for the GPU that they run on",
)
