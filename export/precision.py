"""A float32 ONNX graph in half precision, its input and output kept in float32.

The graph was exported in float32 first, so that BN is folded there (half the error of folding in
float16). One Cast stands behind the input and one before the output: a device, a bundle's golden
values and every benchmark feed float32 whatever the precision, and an engine fuses the Cast into
its first kernel. In a quantised graph the scales become half precision too, because a strongly
typed builder takes no mixture. The integers are rounded again to the new scale, so no weight moves
by more than a step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vcompress.bench.errors import UserError

from .graph import COMPUTE, Array, Graph, attribute, opset_of, per_axis, save

Half = Literal["fp16", "bf16"]
OPSETS: dict[str, int] = {"fp16": 19, "bf16": 22}
"""The oldest opset with this type in all operators of a convolutional network, scales included."""

_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_NUMPY: dict[str, Any] = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
_LARGEST = {"fp16": 65504.0, "bf16": 2.0**128 - 2.0**120}
_SMALLEST = {"fp16": 2.0**-24, "bf16": 2.0**-126}
_FLOAT32_INPUTS = {"Resize": (1, 2), "Upsample": (1,)}
"""Inputs that stay in float32 whatever the data are: sizes and scales of the image."""


@dataclass(frozen=True)
class CastReport:
    """What the conversion did."""

    precision: str
    casts: int
    """Cast nodes in the file between floating types; two are those of input and output."""
    tensors: int
    """Constants that were converted."""
    clamped_scales: int
    """Scales below the smallest number of the type, raised to it."""
    largest: float
    """Largest absolute value among the constants."""
    flushed: float
    """Share of the weights that are zero now and were not before."""


def convert_file(path: Path, precision: Half) -> CastReport:
    """Convert the float32 file at `path` in place, whole or not at all.

    Raises:
        UserError: a weight that the type cannot hold, or a graph that does not come out in it.
    """
    proto = onnx.load(str(path))
    report = convert(proto, precision)
    save(proto, path)
    return report


def convert(proto: onnx.ModelProto, precision: Half) -> CastReport:
    """Convert a float32 graph in place.

    Raises:
        UserError: as `convert_file`.
    """
    opset = opset_of(proto)
    if opset < OPSETS[precision]:
        raise UserError(
            f"opset {opset}: {precision} needs {OPSETS[precision]} or later. Give --opset."
        )
    before = sum(n.op_type == "Cast" for n in proto.graph.node)
    graph = Graph(proto)
    keep = _kept_in_float32(graph.nodes)
    clamped = _requantise(graph, precision)
    tensors, largest, lost, total = 0, 0.0, 0, 0
    for name, tensor in list(graph.constants.items()):
        if tensor.data_type != TensorProto.FLOAT or name in keep:
            continue
        values = numpy_helper.to_array(tensor)
        halved = _halved(values, precision, name)
        graph.store(name, halved)
        tensors += 1
        largest = max(largest, float(np.abs(values).max(initial=0.0)))
        lost += int(((halved == 0) & (values != 0)).sum())
        total += values.size
    for node in graph.nodes:
        _retype(node, precision)
    _edges(proto, graph, precision)
    del proto.graph.value_info[:]
    graph.write_back()
    del proto.graph.value_info[:]
    check_types(proto, precision)
    casts = sum(n.op_type == "Cast" for n in proto.graph.node)
    if casts != before + len(proto.graph.input) + len(proto.graph.output):
        raise UserError(f"{casts} Casts after the conversion, {before} before: please report this.")
    return CastReport(precision, casts, tensors, clamped, largest, lost / max(total, 1))


def _kept_in_float32(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    return {
        node.input[place]
        for node in nodes
        for place in _FLOAT32_INPUTS.get(node.op_type, ())
        if place < len(node.input)
    }


def _halved(values: Array, precision: Half, name: str) -> Array:
    with np.errstate(over="ignore"):
        halved: Array = values.astype(_NUMPY[precision])
    if not np.isfinite(halved.astype(np.float32)).all() and np.isfinite(values).all():
        other = "Cast to bf16, or keep" if precision == "fp16" else "Keep"
        raise UserError(
            f"{name} holds {np.abs(values).max():.4g}, which {precision} cannot; its largest "
            f"number is {_LARGEST[precision]:g}. {other} the network in fp32."
        )
    return halved


def _requantise(graph: Graph, precision: Half) -> int:
    """Round every scale to the type, and the stored integers to the scale that it became."""
    clamped, smallest = 0, _SMALLEST[precision]
    done: dict[str, Array] = {}
    rounded: set[str] = set()
    for node in graph.nodes:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        name = node.input[1]
        scale = done.get(name)
        if scale is None:
            found = graph.value(name)
            if found is None or found.dtype != np.float32:
                continue
            scale = done[name] = found
            clamped += int((found < smallest).sum())
            graph.store(name, np.maximum(found, smallest).astype(_NUMPY[precision]))
        integers = graph.value(node.input[0])
        if node.op_type == "QuantizeLinear" or integers is None or integers.dtype.kind not in "iu":
            continue
        if node.input[0] not in rounded:  # several nodes may read one weight
            rounded.add(node.input[0])
            graph.store(node.input[0], _rounded_again(node, graph, integers, scale))
    return clamped


def _rounded_again(node: onnx.NodeProto, graph: Graph, integers: Array, scale: Array) -> Array:
    new = graph.value(node.input[1])
    assert new is not None
    ratio = scale.astype(np.float64) / new.astype(np.float64)
    ratio = per_axis(ratio, integers.ndim, attribute(node, "axis", 1))
    limits = np.iinfo(integers.dtype)
    # -127..127 for weights: the range stays symmetric.
    low = -limits.max if integers.min() > limits.min else limits.min
    return np.asarray(np.clip(np.rint(integers * ratio), low, limits.max), integers.dtype)


def _retype(node: onnx.NodeProto, precision: Half) -> None:
    """Attributes that name float32 as the type of what a node makes."""
    if node.op_type == "ConstantOfShape" and not node.attribute:  # it makes float32 zeros
        zero = numpy_helper.from_array(np.zeros(1, _NUMPY[precision]))
        node.attribute.append(helper.make_attribute("value", zero))
    typed = ("Cast", "RandomNormal", "RandomUniform", "EyeLike", "DequantizeLinear")
    for found in node.attribute:
        if found.name in ("to", "dtype", "output_dtype") and node.op_type in typed:
            if found.i == TensorProto.FLOAT:
                found.i = _TYPES[precision]
        elif found.type == onnx.AttributeProto.TENSOR and found.t.data_type == TensorProto.FLOAT:
            values = _halved(numpy_helper.to_array(found.t), precision, node.name)
            found.t.CopyFrom(numpy_helper.from_array(values, found.t.name))
        elif found.type == onnx.AttributeProto.GRAPH:
            raise UserError(
                f"{node.op_type} {node.name}: networks with branches or loops are not cast."
            )


def _edges(proto: onnx.ModelProto, graph: Graph, precision: Half) -> None:
    """Inputs and outputs stay float32; a Cast stands at each."""
    front, back = [], []
    for value in proto.graph.input:
        if value.type.tensor_type.elem_type != TensorProto.FLOAT:
            continue
        name = f"{value.name}_{precision}"
        graph.redirect(value.name, name)
        front.append(
            helper.make_node(
                "Cast", [value.name], [name], name=f"cast_{value.name}", to=_TYPES[precision]
            )
        )
    for value in proto.graph.output:
        if value.type.tensor_type.elem_type != TensorProto.FLOAT:
            continue
        name = f"{value.name}_{precision}"
        maker = graph.maker[value.name]
        maker.output[list(maker.output).index(value.name)] = name
        graph.redirect(value.name, name)
        back.append(
            helper.make_node(
                "Cast", [name], [value.name], name=f"cast_{value.name}", to=TensorProto.FLOAT
            )
        )
    graph.nodes = [*front, *graph.nodes, *back]
    graph.index()


def check_types(proto: onnx.ModelProto, precision: Half) -> None:
    """Every convolution and matrix product computes in the type.

    Raises:
        UserError: one does not, by name; a float32 constant has promoted it.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    except Exception as error:
        raise UserError(
            f"the network does not come out in {precision}: {' '.join(str(error).split())[:300]}"
        ) from None
    kinds = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    wrong = [
        node.name
        for node in inferred.graph.node
        if node.op_type in COMPUTE
        and kinds.get(node.output[0], _TYPES[precision]) != _TYPES[precision]
    ]
    if wrong:
        raise UserError(
            f"{len(wrong)} layers stay in another type than {precision}, the first is {wrong[0]}."
        )
