"""Answers of a file that gives maps of logits: at the size of the image, or the best class."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vcompress.bench.errors import UserError

from .graph import opset_of

_MOST_CLASSES = 255


def input_size(proto: onnx.ModelProto) -> tuple[int, int]:
    """Height and width of the network's input `[B, C, H, W]`, or `[B, H, W, C]` of pixels.

    Raises:
        UserError: they are free.
    """
    entry = proto.graph.input[0]
    dims = [d.dim_value for d in entry.type.tensor_type.shape.dim]
    pixels = entry.type.tensor_type.elem_type == TensorProto.UINT8
    height, width = dims[1:3] if pixels else dims[2:4]
    if not height or not width:
        raise UserError(
            f"--resize-in-graph: {entry.name} takes images of any size {dims}; give "
            f"--embed-preprocess normalise, which fixes it."
        )
    return height, width


def resized(logits: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """`[N, K, h, w]` as `[N, K, *size]`, by torch's bilinear interpolation without aligned
    corners."""
    found: NDArray[Any] = torch.nn.functional.interpolate(
        torch.from_numpy(logits), size=size, mode="bilinear", align_corners=False
    ).numpy()
    return found


def add_answer(proto: onnx.ModelProto, resize: bool, argmax: bool) -> None:
    """Put the logits `[B, K, h, w]` at the size of the input, or the best class `[B, h, w] uint8`
    in their place, or both, in place of the output.

    Raises:
        UserError: an output of another form, or more classes than a byte has.
    """
    graph = proto.graph
    output = graph.output[0]
    kind, dims = output.type.tensor_type.elem_type, output.type.tensor_type.shape.dim
    if len(dims) != 4:
        raise UserError(
            f"--resize-in-graph and --argmax are for maps [batch, classes, h, w]; {output.name} "
            f"has {len(dims)} axes. Leave them."
        )
    batch: int | str = dims[0].dim_value or dims[0].dim_param
    classes, size = dims[1].dim_value, (dims[2].dim_value, dims[3].dim_value)
    if argmax and classes > _MOST_CLASSES:
        raise UserError(f"--argmax: {classes} classes do not fit into a byte. Leave it.")
    last, shape = output.name, [batch, classes, *size]
    wanted = input_size(proto) if resize else size
    if resize and size != wanted:
        last, shape = "logits_at_size", [batch, classes, *wanted]
        graph.node.append(_resize(proto, output.name, last, size, wanted))
    if argmax:
        graph.node.append(
            helper.make_node("ArgMax", [last], ["vcompress/best"], "vcompress/argmax", axis=1,
                             keepdims=0),
        )  # fmt: skip
        graph.node.append(
            helper.make_node("Cast", ["vcompress/best"], ["classes"], "vcompress/byte",
                             to=TensorProto.UINT8)
        )  # fmt: skip
        last, kind, shape = "classes", TensorProto.UINT8, [batch, *shape[2:]]
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(last, kind, shape))


def _resize(
    proto: onnx.ModelProto, source: str, made: str, size: tuple[int, int], wanted: tuple[int, int]
) -> onnx.NodeProto:
    """By whole factors where they are such, which every runtime takes, else to a size."""
    how = {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}
    name, graph, opset, roi = "vcompress/size", proto.graph, opset_of(proto), ""
    if opset < 11:
        raise UserError(
            f"--resize-in-graph: operator set {opset} has no such interpolation. Give --opset 11 "
            f"or later."
        )
    if opset < 13:  # it has to be there, and is not read
        roi = "vcompress/roi"
        graph.initializer.append(numpy_helper.from_array(np.zeros(0, np.float32), roi))
    whole = all(w % s == 0 for s, w in zip(size, wanted, strict=True))
    if whole:
        scales = [1.0, 1.0, *(w / s for s, w in zip(size, wanted, strict=True))]
        graph.initializer.append(numpy_helper.from_array(np.array(scales, np.float32), name))
        return helper.make_node("Resize", [source, roi, name], [made], "vcompress/resize", **how)
    if opset < 18:
        raise UserError(
            f"--resize-in-graph: {size[0]} x {size[1]} to {wanted[0]} x {wanted[1]} is by no whole "
            f"factor, which takes operator set 18 or later. Give --opset 18."
        )
    graph.initializer.append(numpy_helper.from_array(np.array(wanted, np.int64), name))
    return helper.make_node(
        "Resize", [source, "", "", name], [made], "vcompress/resize", axes=[2, 3], **how
    )
