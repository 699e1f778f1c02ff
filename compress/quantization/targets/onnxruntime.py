"""ONNX Runtime on the CPU: an operator runs in int8 where its inputs and its output are quantised.

Activations are uint8 with a zero point. After a ReLU it is zero, and the rounding absorbs the ReLU.
Convolutions, residual additions, gates of squeeze-and-excite, concatenation and pooling
carry Q/DQ on both sides; matrix products on their inputs only, since they have an int8 form with
a floating point result. SiLU, hard swish and hard sigmoid between rounded maps have their gate
rounded too, and run in integers. A grouped convolution whose integer kernel is slower on this
machine, by its time there, stays in floating point.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx, nn

from ..gates import gate_kind
from ..graph import activations_of, is_leaf_of_output, kind, leaf, source, tail
from ..trace import shape
from . import Keep, Plan, Target

_IN_INT8 = frozenset({
    "conv", "linear", "conv_transpose", "matmul", "add", "mul", "cat", "avgpool", "global_pool",
})  # fmt: skip
"""Operations that there is something to decide about."""
SLOWER = 1.3
"""Times as long as in floating point, with its conversions, that a kernel takes in int8,"""
LEAST_MS = 0.02
"""and milliseconds longer, to be left in floating point."""


def place(nodes: Sequence[fx.Node], keep: Keep) -> Plan:
    """See the module's text; `nodes` in order of execution."""
    plan = Plan()
    for node in nodes:
        what = kind(node)
        if what not in _IN_INT8:
            continue
        reason = keep(node)
        if reason is not None:
            plan.keep(node, what, reason)
        elif what == "conv" and (slow := _slower(node)):
            plan.keep(node, what, slow)
        elif what in ("conv", "linear"):
            plan.weights.append(node)
            plan.quantise(source(activations_of(node)[0]))
            if _rounds_output(node, what) and not is_leaf_of_output(tail(node)):
                plan.quantise(tail(node))
        elif what in ("conv_transpose", "matmul"):
            plan.keep(node, what, "ONNX Runtime has no gain from int8 for it on the CPU")
        else:
            _place_between(node, what, plan)
    for node in nodes:
        _round_gate(node, plan)
    return plan


def _slower(node: fx.Node) -> str | None:
    """Why a grouped convolution stays in floating point: int8 is slower here, clear of the noise.

    Depthwise convolutions are never so much slower that two conversions would pay.
    """
    from ..kernels import Convolution, conv_times

    layer, given = leaf(node), shape(node.all_input_nodes[0])
    if not isinstance(layer, nn.Conv2d) or given is None or len(given) != 4 or layer.groups == 1:
        return None
    if layer.groups == layer.in_channels == layer.out_channels:
        return None
    sizes = layer.kernel_size, layer.stride, layer.dilation, given[2:]
    kernel, stride, dilation, size = ((int(pair[0]), int(pair[1])) for pair in sizes)
    channels = layer.in_channels, layer.out_channels
    times = conv_times(Convolution(*channels, kernel, stride, dilation, layer.groups, size))
    if times.int8 < SLOWER * times.float32 or times.int8 - times.float32 < LEAST_MS:
        return None
    return (
        f"int8 is slower here: {times.int8:.2g} against {times.float32:.2g} ms for it alone, in "
        "ONNX Runtime"
    )


def _round_gate(node: fx.Node, plan: Plan) -> None:
    """Let an activation between rounded maps be computed of integers."""
    module = leaf(node)
    found = gate_kind(node.target if module is None else type(module))
    if found is None or node not in plan.activations or len(shape(node) or ()) != 4:
        return
    if source(activations_of(node)[0]) not in plan.activations:
        return
    if found == "hardsigmoid":  # it is rounded by itself, in steps of 1/255
        shared = list(plan.activations.values()).count(node) > 1
        if shared or plan.activations[node] is not node:
            return
        if any(kind(user) != "mul" for user in node.users):
            return
        del plan.activations[node]
    plan.gates[node] = found


def _rounds_output(node: fx.Node, what: str) -> bool:
    """Whether a layer runs in int8 only where its output is rounded: convolutions, and products of
    rows with a ReLU, which ONNX Runtime joins in floating point otherwise."""
    rows = len(shape(node) or ()) == 2
    return what == "conv" or (rows and kind(tail(node)) in ("relu", "relu6"))


def _place_between(node: fx.Node, what: str, plan: Plan) -> None:
    """Operations without weights run in int8 where they stand among operations that do."""
    inputs = [source(n) for n in activations_of(node)]
    least = 2 if what in ("add", "mul") else 1
    four = all(len(shape(n) or ()) == 4 for n in inputs)
    if len(inputs) < least or not four or not all(_in_int8(n, plan) for n in inputs):
        if four:
            plan.keep(node, what, "an input of it is made in floating point")
        return
    for made_by in inputs:
        plan.quantise(made_by)
    plan.quantise(tail(node))


def _in_int8(node: fx.Node, plan: Plan) -> bool:
    if node in plan.activations:
        return True
    if kind(node) in ("activation", "gate", "relu", "relu6"):
        return _in_int8(source(activations_of(node)[0]), plan)
    return False


TARGET = Target(
    name="onnxruntime",
    unsigned=True,
    repeat=True,
    place=place,
    runtime="onnxruntime",
    device="cpu",
    no_float16="ONNX Runtime has no float16 convolutions on the CPU: it converts to float32",
)
