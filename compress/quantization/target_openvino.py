"""OpenVINO on the CPU: inputs of convolutions and matrix products, uint8 with a zero point.

OpenVINO moves Q/DQ past pooling and reshaping by itself, fuses the addition of a shortcut and the
next rounding into the convolution before it, and needs no rounding behind a layer: so, unlike for
ONNX Runtime, outputs are not quantised, and of a residual addition the shortcut alone is.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from .graph import activations_of, head, kind, source
from .targets import Keep, Plan
from .trace import shape

UNSIGNED = True
REPEAT = False


def place(nodes: Sequence[fx.Node], keep: Keep) -> Plan:
    """See the module's text; `nodes` in order of execution."""
    plan = Plan()
    depth: dict[fx.Node, int] = {}
    for node in nodes:
        depth[node] = 1 + max((depth[n] for n in node.all_input_nodes), default=0)
        what = kind(node)
        if what not in ("conv", "conv_transpose", "linear", "matmul", "add"):
            continue
        reason = keep(node)
        if reason is not None:
            plan.keep(node, what, reason)
        elif what == "add":
            _shortcut(node, plan, depth)
        else:
            if what != "matmul":
                plan.weights.append(node)
            for made_by in activations_of(node):
                plan.quantise(source(made_by))
    for node in nodes:
        if node in plan.activations and kind(node) == "cat":
            plan.share([node, *(source(n) for n in activations_of(node))])
    return plan


def _shortcut(node: fx.Node, plan: Plan, depth: dict[fx.Node, int]) -> None:
    """The branch that does not end in a layer; the earlier one where both do."""
    inputs = [source(n) for n in activations_of(node)]
    if len(inputs) != 2 or len(shape(node) or ()) != 4:
        return
    made = [n for n in inputs if head(n) in plan.weights and kind(n) in ("conv", "bn")]
    if not made:
        return
    others = [n for n in inputs if n not in made]
    plan.quantise(others[0] if others else min(inputs, key=lambda n: depth[n]))
