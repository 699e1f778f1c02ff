"""An int8 Q/DQ graph for TensorRT in FP8 (E4M3) instead: the same places, the same ranges.

A step of int8 covers its range in 127 equal parts, E4M3 in values up to 448 that lie closer the
smaller they are. So the scales become 127/448 of what they were, and weights are rounded again
from what the int8 file holds. ONNX Runtime computes such graphs on the CPU; TensorRT from SM 89.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto

from vcompress.bench.errors import UserError

from .rewrite import Array, Graph, attribute

LARGEST = 448.0
"""The largest finite number of E4M3."""
OPSET = 19
_E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)


@dataclass(frozen=True)
class Float8Report:
    """What the conversion did."""

    pairs: int
    """DequantizeLinear nodes, all of them on FP8 now."""
    weights: int
    """Stored weights."""
    weight_sqnr_db: float
    """The FP8 weights against those of the int8 file, all together."""


def convert_file(path: Path) -> Float8Report:
    """Convert the file at `path` in place, whole or not at all.

    Raises:
        UserError: it is not quantised, or not as TensorRT wants it.
    """
    proto = onnx.load(str(path))
    report = convert(proto)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(proto.SerializeToString())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return report


def convert(proto: onnx.ModelProto) -> Float8Report:
    """Convert a graph in place.

    Raises:
        UserError: as `convert_file`.
    """
    opset = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    if opset < OPSET:
        raise UserError(f"opset {opset}: fp8 needs {OPSET} or later. Give --opset.")
    graph = Graph(proto)
    places = [n for n in graph.nodes if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    if not places:
        raise UserError("fp8: the file quantises nothing. Quantise it with --target tensorrt.")
    old: dict[str, Array] = {}
    signal = error = 0.0
    weights = 0
    for node in places:
        scale, zero = graph.value(node.input[1]), graph.value(node.input[2])
        old.setdefault(node.input[1], _checked(node, scale, zero, graph, node.input[1] in old))
        integers = graph.value(node.input[0])
        if integers is not None and node.op_type == "DequantizeLinear":
            step = _along(node, old[node.input[1]], integers.ndim)
            values = integers.astype(np.float64) * step
            held = np.asarray(values / (step * (127 / LARGEST)), np.float32).astype(_E4M3)
            graph.store(node.input[0], held)
            weights += 1
            signal += float(np.square(values).sum())
            off = held.astype(np.float64) * (step * (127 / LARGEST)) - values
            error += float(np.square(off).sum())
    for name, value in old.items():
        graph.store(name, np.asarray(value * np.asarray(127 / LARGEST, value.dtype), value.dtype))
    for node in places:
        zero = graph.value(node.input[2])
        if zero is not None and zero.dtype != _E4M3:
            graph.store(node.input[2], np.zeros(zero.shape, _E4M3))
    del proto.graph.value_info[:]
    graph.write_back()
    sqnr = 10 * float(np.log10(signal / error)) if error else float("inf")
    pairs = sum(n.op_type == "DequantizeLinear" for n in places)
    return Float8Report(pairs, weights, sqnr)


def _checked(
    node: onnx.NodeProto, scale: Array | None, zero: Array | None, graph: Graph, seen: bool
) -> Array:
    if scale is None or zero is None:
        raise UserError(f"{node.name}: a computed scale or zero point; fp8 needs constants.")
    if not seen and (zero.dtype not in (np.int8, _E4M3) or zero.astype(np.float32).any()):
        raise UserError(
            f"{node.name}: fp8 is made of symmetric int8. Quantise with --target tensorrt."
        )
    return scale


def _along(node: onnx.NodeProto, scale: Array, rank: int) -> Array:
    values = scale.astype(np.float64)
    if not scale.ndim:
        return values
    shape = [1] * rank
    shape[int(attribute(node, "axis", 1))] = -1  # type: ignore[call-overload]
    return values.reshape(shape)


def uses(proto: onnx.ModelProto) -> bool:
    """Whether a file holds FP8."""
    return any(t.data_type == TensorProto.FLOAT8E4M3FN for t in proto.graph.initializer)
