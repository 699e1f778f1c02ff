"""Turns an int8 Q/DQ graph into FP8 (E4M3) for TensorRT: the same places, the same ranges.

int8 divides its range into 127 equal steps. E4M3 has values up to 448, which lie closer the smaller
they are. So the scales become 127/448 of the int8 ones, and weights are rounded again from the int8
values. ONNX Runtime computes such graphs on the CPU; TensorRT from SM 89.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx

from vcompress.bench.errors import UserError

from .graph import Array, Graph, attribute, opset_of, per_axis, save

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
    save(proto, path)
    return report


def convert(proto: onnx.ModelProto) -> Float8Report:
    """Convert a graph in place.

    Raises:
        UserError: as `convert_file`.
    """
    opset = opset_of(proto)
    if opset < OPSET:
        raise UserError(f"opset {opset}: fp8 needs {OPSET} or later. Give --opset.")
    graph = Graph(proto)
    places = [n for n in graph.nodes if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    if not places:
        raise UserError("fp8: the file quantises nothing. Quantise it with --target tensorrt.")
    scales: dict[str, Array] = {}
    signal = error = 0.0
    weights = 0
    for node in places:
        scale = scales[node.input[1]] = _checked(node, graph)
        integers = graph.value(node.input[0])
        if node.op_type != "DequantizeLinear" or integers is None or integers.dtype == _E4M3:
            continue  # an activation, or a weight that another node reads too
        held = (integers.astype(np.float64) * (LARGEST / 127)).astype(np.float32).astype(_E4M3)
        graph.store(node.input[0], held)
        weights += 1
        step = per_axis(scale.astype(np.float64), integers.ndim, attribute(node, "axis", 1))
        off = held.astype(np.float64) * (127 / LARGEST) - integers
        signal += float(np.square(integers * step).sum())
        error += float(np.square(off * step).sum())
    for name, scale in scales.items():
        graph.store(name, np.asarray(scale * np.asarray(127 / LARGEST, scale.dtype), scale.dtype))
    for name in {node.input[2] for node in places}:
        graph.store(name, np.zeros(list(graph.constants[name].dims), _E4M3))
    del proto.graph.value_info[:]
    graph.write_back()
    sqnr = 10 * float(np.log10(signal / error)) if error else float("inf")
    pairs = sum(n.op_type == "DequantizeLinear" for n in places)
    return Float8Report(pairs, weights, sqnr)


def _checked(node: onnx.NodeProto, graph: Graph) -> Array:
    """The scale of a symmetric int8 rounding."""
    scale = graph.value(node.input[1])
    zero = graph.value(node.input[2]) if len(node.input) > 2 else None
    if scale is None or zero is None:
        raise UserError(f"{node.name}: a computed scale or zero point; fp8 needs constants.")
    if zero.dtype != np.int8 or zero.any():
        raise UserError(
            f"{node.name}: fp8 is made of symmetric int8. Quantise with --target tensorrt."
        )
    return scale
