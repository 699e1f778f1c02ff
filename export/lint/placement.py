"""Rules on where Q and DQ stand, for TensorRT: graphs that build and lose speed or accuracy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from onnx import NodeProto, TensorProto

from ..graph import COMPUTE, attribute
from .findings import Say
from .view import DEQUANTISE, QUANTISE, View, dequantiser, label, type_name

_INSIDE = frozenset(
    {"Softmax", "LayerNormalization", "GroupNormalization", "InstanceNormalization",
     "RMSNormalization", "Sigmoid", "HardSigmoid", "HardSwish", "Gelu", "Erf", "Tanh"}
)  # fmt: skip
_ROUND = (QUANTISE, DEQUANTISE)


def check(view: View, say: Say) -> None:
    """Look at every layer and every addition, concatenation and activation."""
    any_quantised = any(n.op_type == DEQUANTISE for v in view.all() for n in v.nodes)
    if not any_quantised:
        return
    for inner in view.all():
        for node in inner.standard:
            if node.op_type in COMPUTE:
                _layer(inner, node, say)
            elif node.op_type == "Add":
                _addition(inner, node, say)
            elif node.op_type == "Concat":
                _concat(inner, node, say)
            elif node.op_type in _INSIDE:
                _inside(inner, node, say)


def channel_axis(node: NodeProto, rank: int) -> int:
    """The axis of the output channels in a layer's weight."""
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 0 if node.op_type == "Conv" else rank - 1


def _layer(view: View, node: NodeProto, say: Say) -> None:
    at = label(node)
    found = [dequantiser(view, name) for name in node.input[:2]]
    kinds = [view.dtype(f[0].input[0]) if f else 0 for f in found]
    weight = found[1]
    if len(node.input) > 2 and node.input[2] and dequantiser(view, node.input[2]):
        say("quantised-bias", at, f"its bias {node.input[2]} comes from a DequantizeLinear")
    if not any(found):
        say("runs-in-float", at, f"{node.op_type} is not quantised")
        return
    if not all(found):
        if not (kinds[1] in (TensorProto.INT4, TensorProto.FLOAT4E2M1) and node.op_type in
                ("MatMul", "Gemm")):  # fmt: skip
            which = "its input" if found[0] else "its weight"
            say("half-quantised", at, f"of {node.op_type} only {which} is quantised")
    elif kinds[0] != kinds[1] and {TensorProto.INT8, TensorProto.FLOAT8E4M3FN} == set(kinds):
        say("mixed-quantised", at, f"{type_name(kinds[0])} with {type_name(kinds[1])}")
    if weight is not None:
        _weight(view, node, *weight, say)
    if all(found) and kinds[1] == TensorProto.INT8:
        _size(view, node, say)
    if node.op_type in ("Conv", "ConvTranspose"):
        _behind(view, node, say)


def _weight(view: View, node: NodeProto, dq: NodeProto, axis: int | None, say: Say) -> None:
    at, source = label(node), view.maker.get(dq.input[0])
    if source is not None and source.op_type == QUANTISE and view.is_constant(source.input[0]):
        say("float-weight-copy", at, f"its weight {source.input[0]} is stored in floating point")
    elif not view.is_constant(dq.input[0]):
        return
    shape, steps = view.shape(node.input[1]), view.shape(dq.input[1])
    if axis is not None and shape is not None:
        want = channel_axis(node, len(shape))
        if axis != want:
            say(
                "wrong-axis", at,
                f"the scales of its weight run along axis {axis}, its channels along {want}",
            )  # fmt: skip
    integer = view.dtype(dq.input[0]) == TensorProto.INT8
    if integer and steps is not None and int(np.prod(steps)) == 1 and node.op_type != "MatMul":
        say("per-tensor-weight", at, "its weight has one scale")


def _size(view: View, node: NodeProto, say: Say) -> None:
    shape, at = view.shape(node.input[1]), label(node)
    if shape is None or -1 in shape:
        return
    if node.op_type == "Conv":
        groups = int(attribute(node, "group", 1))
        out, into = shape[0], shape[1] * groups
        from_input = _is_input(view, node.input[0])
        if (groups > 1 and (into % 8 or out % 8)) or (
            groups == 1 and not from_input and ((into < 16 and into % 8) or (out < 16 and out % 8))
        ):
            say("odd-channels", at, f"{into} channels in, {out} out, {groups} groups")
        elif groups > 1 and max(shape[2:], default=3) < 3:
            say("odd-channels", at, f"grouped with a kernel of {shape[2:]}")
    elif node.op_type in ("Gemm", "MatMul") and view.is_constant(_root(view, node.input[1])):
        made = view.shape(node.output[0])
        rows = made[-2] if made and len(made) > 1 else 1
        if rows == 1 and made is not None and all(d == 1 for d in made[:-1]):
            say("small-matmul", at, "one row")
        elif min(shape[-2:]) < 16:
            say("small-matmul", at, f"a weight of {shape}")


def _root(view: View, name: str) -> str:
    found = dequantiser(view, name)
    if found is None:
        return name
    source = view.maker.get(found[0].input[0])
    return str(source.input[0]) if source is not None and source.op_type == QUANTISE else (
        found[0].input[0]
    )  # fmt: skip


def _is_input(view: View, name: str) -> bool:
    return _root(view, name) in view.inputs


def _behind(view: View, node: NodeProto, say: Say) -> None:
    """Conv, (BatchNormalization), ReLU with a rounding in between."""
    chain = [node]
    for operator in ("BatchNormalization", "Relu", "Clip"):
        name, rounded = chain[-1].output[0], ""
        while True:
            readers = view.readers.get(name, [])
            step = next((n for n in readers if n.op_type in _ROUND), None)
            if step is None:
                break
            rounded, name = rounded or label(step), step.output[0]
        after = next(iter(view.read_by(name, operator)), None)
        if after is None:
            continue
        if rounded:
            say("split-fusion", rounded, f"it stands between {label(chain[-1])} and {label(after)}")
        chain.append(after)


def _addition(view: View, node: NodeProto, say: Say) -> None:
    found = [dequantiser(view, name) for name in node.input]
    if not all(found) or any(view.is_constant(_root(view, name)) for name in node.input):
        return
    makers = [view.maker.get(_root(view, name)) for name in node.input]
    ends = [m for m in makers if m is not None and m.op_type in ("Conv", "BatchNormalization")]
    if ends:
        say("both-branches", label(node), f"both inputs are rounded; one ends in {label(ends[0])}")


def _concat(view: View, node: NodeProto, say: Say) -> None:
    found = [dequantiser(view, name) for name in node.input]
    steps = [view.value(f[0].input[1]) for f in found if f is not None]
    if len(steps) < 2 or any(s is None for s in steps):
        return
    if any(not np.array_equal(a, b) for a, b in pairwise(steps)):  # type: ignore[arg-type]
        values = ", ".join(f"{float(np.max(s)):.4g}" for s in steps[:4])  # type: ignore[arg-type]
        say("concat-scales", label(node), f"its inputs have the scales {values}")


def _inside(view: View, node: NodeProto, say: Say) -> None:
    maker = view.maker.get(node.input[0])
    if maker is not None and maker.op_type == DEQUANTISE:
        say(
            "quantised-inside", label(maker), f"{node.op_type} {label(node)} reads a rounded tensor"
        )
