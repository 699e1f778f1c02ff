"""Rules of ONNX Runtime on the CPU: which Q/DQ nodes run in int8, which files it refuses.

It fuses DQ -> operator -> Q, so an operator runs in int8 only where its output is rounded too.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto

from ..graph import COMPUTE, attribute
from . import quantised
from .findings import Say
from .view import DEQUANTISE, QUANTISE, View, dequantiser, label

_NEEDS_OUTPUT = frozenset(
    {"Conv", "Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu"}
)
_DEFAULT = ("", "ai.onnx")


def check(view: View, say: Say) -> None:
    """Look at every layer, and at what stands between roundings."""
    quantised_graph = any(n.op_type == DEQUANTISE for v in view.all() for n in v.nodes)
    for inner in view.all():
        quantised.weights(inner, say)
        for node in inner.nodes:
            if node.domain not in (*_DEFAULT, "ai.onnx.ml", "com.microsoft"):
                say("custom-domain", label(node), f"{node.domain}.{node.op_type}")
            elif quantised_graph:
                _node(inner, node, say)


def _node(view: View, node: NodeProto, say: Say) -> None:
    if node.op_type not in _NEEDS_OUTPUT and node.op_type not in COMPUTE:
        return
    at = label(node)
    names = [n for n in node.input if n][: 2 if node.op_type in COMPUTE else None]
    found = [dequantiser(view, name) for name in names]
    if node.op_type in COMPUTE and not any(found):
        say("runs-in-float", at, f"{node.op_type} is not quantised")
    if not found or not all(found):
        if any(found) and node.op_type in COMPUTE:
            say("not-fused", at, f"{node.op_type} has one quantised input")
        return
    if node.op_type == "ConvTranspose":
        say("runs-in-float", at, "ConvTranspose has no int8 kernel on the CPU")
        return
    rounded, relu = _output(view, node)
    if node.op_type in _NEEDS_OUTPUT and rounded is None:
        say("not-fused", at, f"the output of {node.op_type} is not rounded")
    elif relu is not None and rounded is not None and not _from_zero(view, rounded):
        say("relu-zero-point", label(rounded), f"the zero point behind {label(relu)}")
    if node.op_type in COMPUTE:
        _kinds(view, node, found, say)


def _kinds(
    view: View, node: NodeProto, found: list[tuple[NodeProto, int | None] | None], say: Say
) -> None:
    first, second = found[0], found[1]
    assert first is not None and second is not None
    kind = view.dtype(first[0].input[0])
    values = view.value(second[0].input[0])
    if kind == TensorProto.UINT8 and values is not None and values.dtype == np.int8:
        if int(np.abs(values.astype(np.int16)).max(initial=0)) > 64:
            say("saturation", label(node), "its weight uses all 8 bits")
        if view.shape(second[0].input[1]) in ([], [1]) and node.op_type == "Conv":
            say("per-tensor-weight", label(node), "its weight has one scale")
    source = view.maker.get(second[0].input[0])
    if source is not None and source.op_type == QUANTISE and view.is_constant(source.input[0]):
        say("float-weight-copy", label(node), f"its weight {source.input[0]}")


def _output(view: View, node: NodeProto) -> tuple[NodeProto | None, NodeProto | None]:
    """The Q behind a node, and the ReLU between where there is one."""
    readers = view.readers.get(node.output[0], [])
    relu = None
    if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip"):
        relu = readers[0]
        readers = view.readers.get(relu.output[0], [])
    return next((n for n in readers if n.op_type == QUANTISE), None), relu


def _from_zero(view: View, node: NodeProto) -> bool:
    """Whether the smallest stored integer stands for zero."""
    zero = view.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if zero is None:
        return not attribute(node, "output_dtype", 0) or (
            attribute(node, "output_dtype") == TensorProto.UINT8
        )
    limits = np.iinfo(zero.dtype) if zero.dtype.kind in "iu" else None
    return limits is None or bool((zero == limits.min).all())
