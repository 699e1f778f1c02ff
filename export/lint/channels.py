"""Finds channels that do not fit, which ONNX's own checker and shape inference miss."""

from __future__ import annotations

from onnx import NodeProto

from ..graph import attribute
from .findings import Say
from .view import View, label


def check(view: View, say: Say) -> None:
    """Compare the channels of each layer's weight, bias and statistics with those of its input."""
    for inner in view.all():
        for node in inner.standard:
            if node.op_type in ("Conv", "ConvTranspose"):
                _convolution(inner, node, say)
            elif node.op_type in ("BatchNormalization", "InstanceNormalization"):
                _norm(inner, node, say)


def _size(view: View, name: str, axis: int) -> int | None:
    """The size of an axis, None where it is not known."""
    shape = view.shape(name)
    if shape is None or len(shape) <= axis or shape[axis] < 0:
        return None
    return shape[axis]


def _convolution(view: View, node: NodeProto, say: Say) -> None:
    into, groups = _size(view, node.input[0], 1), int(attribute(node, "group", 1))
    first, second = (_size(view, node.input[1], axis) for axis in (0, 1))
    if first is None or second is None or groups < 1:
        return
    transposed = node.op_type == "ConvTranspose"
    wants, makes = (first, second * groups) if transposed else (second * groups, first)
    if into is not None and into != wants:
        say("channels", label(node), f"{into} channels come in, the weight is for {wants}")
    if (first if transposed else makes) % groups:
        say("channels", label(node), f"{makes} channels in {groups} groups")
    bias = _size(view, node.input[2], 0) if len(node.input) > 2 and node.input[2] else None
    if bias is not None and bias != makes:
        say("channels", label(node), f"{makes} channels go out, the bias is for {bias}")


def _norm(view: View, node: NodeProto, say: Say) -> None:
    into = _size(view, node.input[0], 1)
    for name in node.input[1:]:
        found = _size(view, name, 0)
        if into is not None and found is not None and into != found:
            say("channels", label(node), f"{into} channels come in, {name} is for {found}")
            return
