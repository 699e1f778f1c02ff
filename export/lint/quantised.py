"""Rules on each Q and DQ, for TensorRT: types, scales, zero points, axes, pairs."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto

from ..graph import COMPUTE, attribute
from .findings import Say
from .view import DEQUANTISE, QUANTISE, View, label, type_name

_T = TensorProto
_QUANTISED = frozenset({_T.INT8, _T.FLOAT8E4M3FN, _T.INT4, _T.FLOAT4E2M1})
_SMALLEST_NORMAL: dict[int, float] = {_T.FLOAT16: 6.1035e-5}
_FLOATS = (_T.FLOAT, _T.FLOAT16, _T.BFLOAT16, _T.DOUBLE)


def check(view: View, say: Say) -> None:
    """Look at every Q and DQ of a graph and of those within it, and at its weights."""
    for inner in view.all():
        for node in inner.standard:
            if node.op_type in (QUANTISE, DEQUANTISE):
                _one(inner, node, say)
        weights(inner, say)


def weights(view: View, say: Say) -> None:
    """Stored numbers that are not finite."""
    for name, tensor in view.stored.items():
        readers = view.readers.get(name, [])
        scale = any(n.op_type in (QUANTISE, DEQUANTISE) and n.input[1] == name for n in readers)
        if tensor.data_type not in _FLOATS or scale or prod(tensor.dims) < 2:
            continue  # a single -inf is a mask's fill value
        values = view.value(name)
        layers = view.read_by(name, *COMPUTE)
        if values is None or np.isfinite(_float(values)).all():
            continue
        if np.isnan(_float(values)).any() or layers:
            where = label((layers or readers)[0]) if layers or readers else name
            say("bad-weight", where, f"{name} holds values that are not finite")


def _float(values: Any) -> Any:
    return values if values.dtype.kind == "f" else values.astype(np.float32)


def _kind(view: View, node: NodeProto) -> int:
    """The type of the integers."""
    if node.op_type == DEQUANTISE:
        return view.dtype(node.input[0])
    if len(node.input) > 2 and node.input[2]:
        return view.dtype(node.input[2])
    return int(attribute(node, "output_dtype", 0)) or int(_T.UINT8)


def _one(view: View, node: NodeProto, say: Say) -> None:
    at, kind = label(node), _kind(view, node)
    steps, zero = view.value(node.input[1]), None
    stored = view.is_constant(node.input[0])
    if steps is None:
        say("computed-scale", at, f"the scale {node.input[1]} is not stored in the file")
    if len(node.input) > 2 and node.input[2]:
        zero = view.value(node.input[2])
        if zero is None:
            say("computed-scale", at, f"the zero point {node.input[2]} is not stored in the file")
    _type(view, node, kind, zero, say)
    if zero is not None and kind not in (_T.FLOAT8E4M3FN, _T.FLOAT4E2M1):
        wrong = np.unique(zero[zero != 0])
        if wrong.size:
            say("zero-point", at, f"zero point {_some(wrong)} of {type_name(kind)}")
    if steps is not None:
        _scale(view, node, steps, say)
    if not stored:
        _pair(view, node, say)
        count = 1 if steps is None or attribute(node, "block_size", 0) else steps.size
        if count > 1 and not (node.op_type == DEQUANTISE and _of_stored(view, node)):
            say("per-channel-activation", at, f"{count} scales for one activation")


def _of_stored(view: View, node: NodeProto) -> bool:
    """Whether a DQ reads a Q of a stored weight."""
    maker = view.maker.get(node.input[0])
    return maker is not None and maker.op_type == QUANTISE and view.is_constant(maker.input[0])


def _type(view: View, node: NodeProto, kind: int, zero: Any, say: Say) -> None:
    at, stored = label(node), view.is_constant(node.input[0])
    if kind == _T.INT32 and node.op_type == DEQUANTISE:
        say("int32-bias", at, "a DequantizeLinear of int32")
    elif kind == _T.UINT8:
        if stored and node.op_type == DEQUANTISE:
            say("uint8-weight", at, f"{node.input[0]} is stored as uint8")
        else:
            why = "" if zero is not None else " (ONNX's default without a zero point)"
            say("uint8", at, f"uint8{why}")
    elif kind not in _QUANTISED:
        say("quantised-type", at, f"{type_name(kind)}")
    elif kind in (_T.INT4, _T.FLOAT4E2M1) and not stored:
        source = view.maker.get(node.input[0])
        if not (source is not None and view.is_constant(source.input[0])):
            say("quantised-type", at, f"{type_name(kind)} for an activation")
    elif kind == _T.INT4 and stored and prod(view.shape(node.input[0]) or [0]) % 2:
        say("int4-even", at, f"{node.input[0]} has an odd number of elements")
    elif kind == _T.FLOAT8E4M3FN and node.op_type == DEQUANTISE and node.output[0] in view.readers:
        say("needs-sm89", at, "float8e4m3fn")


def _scale(view: View, node: NodeProto, steps: Any, say: Say) -> None:
    at, values = label(node), np.asarray(steps, np.float64)
    kind = view.dtype(node.input[1])
    wrong = values[~(values > 0)]
    if wrong.size:
        say("bad-scale", at, f"scale {_some(np.unique(wrong))} ({wrong.size} of {values.size})")
    elif np.isinf(values).any():
        say("infinite-scale", at, f"{int(np.isinf(values).sum())} of {values.size} scales")
    else:
        least = _SMALLEST_NORMAL.get(kind, 0.0)
        if least and values.size and float(values.min()) < least:
            say("subnormal-scale", at, f"scale {values.min():.2g} in {type_name(kind)}")
    shape = view.shape(node.input[0])
    block = int(attribute(node, "block_size", 0))
    if shape is None or values.ndim == 0 or values.shape == (1,):
        pass
    elif block:
        axis = int(attribute(node, "axis", 1))
        fits = values.ndim == len(shape) and -len(shape) <= axis < len(shape)
        want = list(shape)
        if fits:
            want[axis] = -(-shape[axis] // block)
        if not fits or list(values.shape) != want:
            say("scale-shape", at, f"scales {list(values.shape)} for {shape} in blocks of {block}")
    else:
        _per_channel(node, values, shape, say)
    outer = view.dtype(node.input[0]) if node.op_type == QUANTISE else view.dtype(node.output[0])
    if kind and outer in _FLOATS and kind in _FLOATS and outer != kind:
        say("scale-type", at, f"a {type_name(kind)} scale for a {type_name(outer)} tensor")
    elif _through_cast(view, node):
        say("scale-type", at, f"a Cast stands beside it: {type_name(kind)} scales in another graph")


def _through_cast(view: View, node: NodeProto) -> bool:
    """A DQ whose result is cast to another floating point type at once."""
    if node.op_type != DEQUANTISE:
        return False
    casts = view.read_by(node.output[0], "Cast")
    return any(attribute(c, "to") in _FLOATS for c in casts)


def _per_channel(node: NodeProto, values: Any, shape: list[int], say: Say) -> None:
    axis = int(attribute(node, "axis", 1))
    if not -len(shape) <= axis < len(shape):
        say("scale-shape", label(node), f"axis {axis} of a tensor of {len(shape)} dimensions")
    elif values.ndim != 1 or (shape[axis] >= 0 and values.size != shape[axis]):
        say(
            "scale-shape", label(node),
            f"{values.size} scales for axis {axis} of {shape}, which has {shape[axis]}",
        )  # fmt: skip


def _pair(view: View, node: NodeProto, say: Say) -> None:
    at = label(node)
    if node.op_type == DEQUANTISE:
        maker = view.maker.get(node.input[0])
        if maker is None or maker.op_type != QUANTISE:
            by = "the graph's input" if maker is None else maker.op_type
            say("lone-quantise", at, f"its integers are made by {by}, not by a Q")
        elif not _same(view, maker, node):
            say("scale-mismatch", at, f"its scale is not that of {label(maker)}")
        return
    readers = view.readers.get(node.output[0], [])
    others = sorted({n.op_type for n in readers} - {DEQUANTISE})
    if others or node.output[0] in view.outputs:
        say("lone-quantise", at, f"its integers go to {', '.join(others) or 'the output'}")


def _same(view: View, a: NodeProto, b: NodeProto) -> bool:
    for place in (1, 2):
        names = [n.input[place] if len(n.input) > place else "" for n in (a, b)]
        if names[0] == names[1]:
            continue
        values = [view.value(name) if name else np.zeros(()) for name in names]
        if any(v is None for v in values):
            continue
        a_values, b_values = (np.asarray(v, np.float64).reshape(-1) for v in values)
        if not np.array_equal(a_values, b_values):
            return False
    return True


def _some(values: Any) -> str:
    return ", ".join(f"{float(v):g}" for v in values[:3]) + (", ..." if len(values) > 3 else "")
