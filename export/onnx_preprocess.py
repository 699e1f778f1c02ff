"""The bundle's preprocessing as an ONNX graph: a device feeds pixels and needs no Python."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from vcompress.bench.bundle import Preprocess
from vcompress.bench.errors import UserError

Embedding = Literal["normalise", "resize"]
"""`normalise` takes images of the network's size; `resize` takes any, and resizes and crops too."""

IMAGE = "image"
PREPROCESSED = "vcompress/preprocessed"
RESIZE_OPSET = 18
"""The first with antialiasing in Resize."""
_KINDS: dict[str, dict[str, Any]] = {
    "bilinear": {"mode": "linear"},
    "bicubic": {"mode": "cubic", "cubic_coeff_a": -0.5},
}


def preprocess_model(
    preprocess: Preprocess,
    embedding: Embedding,
    *,
    opset: int,
    ir_version: int,
    batch: int | str = "batch",
) -> onnx.ModelProto:
    """A model of the preprocessing alone.

    `image` [batch, height, width, channels] uint8, red before green before blue, gives
    `vcompress/preprocessed` [batch, channels, height, width] float32.

    Raises:
        UserError: the operator set is too old for a resize with antialiasing.
    """
    height, width = preprocess.size
    channels = len(preprocess.mean)
    shape: list[int | str] = [batch, height, width, channels]
    if embedding == "resize":
        if opset < RESIZE_OPSET:
            raise UserError(
                f"--embed-preprocess resize needs operator set {RESIZE_OPSET} or later, this file "
                f"has {opset}. Leave --opset away, or give --embed-preprocess normalise."
            )
        shape = [batch, "height", "width", channels]
    build = _Builder()
    if embedding == "resize":
        # Pixels stay 8-bit until they are cropped: resampling rounds to 8 bits, as Pillow does.
        last = build.node("Transpose", [IMAGE], "planes", perm=[0, 3, 1, 2])
        last = _resize(build, last, preprocess)
        last = build.node("Cast", [last], "float", to=TensorProto.FLOAT)
    else:  # TensorRT casts uint8, and does nothing else with it
        last = build.node("Cast", [IMAGE], "float", to=TensorProto.FLOAT)
        last = build.node("Transpose", [last], "planes", perm=[0, 3, 1, 2])
    per_channel = (1, channels, 1, 1)
    mean = np.asarray(preprocess.mean, np.float32).reshape(per_channel)
    std = np.asarray(preprocess.std, np.float32).reshape(per_channel)
    # The three steps of the numpy implementation, so that the result is the same to the last bit.
    last = build.node("Div", [last, build.constant("levels", np.float32(255))], "unit")
    last = build.node("Sub", [last, build.constant("mean", mean)], "centred")
    build.node("Div", [last, build.constant("std", std)], PREPROCESSED.partition("/")[2])
    graph = helper.make_graph(
        build.nodes,
        "preprocess",
        [helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, shape)],
        [
            helper.make_tensor_value_info(
                PREPROCESSED, TensorProto.FLOAT, [batch, channels, height, width]
            )
        ],
        build.constants,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version
    )


class _Builder:
    """Nodes and constants under names that an exporter does not give."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def node(self, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        name = f"vcompress/{name}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: npt.ArrayLike) -> str:
        name = f"vcompress/{name}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def whole(self, name: str, *values: int) -> str:
        return self.constant(name, np.array(values, np.int64))


def _resize(build: _Builder, planes: str, preprocess: Preprocess) -> str:
    """Resize and centre-crop; what depends on the image's size is computed in the graph."""
    height, width = preprocess.size
    if preprocess.resize is None:
        sizes = build.whole("sizes", height, width)
    else:
        # The shorter side becomes `resize`; the longer one is cut, not rounded, in whole numbers.
        shape = build.node("Shape", [planes], "shape", start=2, end=4)
        shorter = build.node(
            "ReduceMin", [shape, build.whole("first_axis", 0)], "shorter", keepdims=1
        )
        side = build.whole("side", preprocess.resize)
        sizes = build.node(
            "Div", [build.node("Mul", [shape, side], "scaled"), shorter], "sizes_of_image"
        )
    resized = _nearest(build, planes, sizes) if preprocess.interpolation == "nearest" else None
    if resized is None:
        # All four sizes: ONNX Runtime's layout optimiser mistakes `axes` (seen in 1.31).
        outer = build.node("Shape", [planes], "outer", start=0, end=2)
        sizes_of_all = build.node("Concat", [outer, sizes], "sizes_of_all", axis=0)
        kind = _KINDS[preprocess.interpolation]
        resized = build.node(
            "Resize", [planes, "", "", sizes_of_all], "resized", antialias=1, exclude_outside=1,
            coordinate_transformation_mode="half_pixel", **kind,
        )  # fmt: skip
    if preprocess.resize is None:
        return resized
    # Offsets are half of what is left over, rounded half to even: n // 2 + (n % 2) * (n // 2 % 2).
    crop, two = build.whole("crop", height, width), build.whole("two", 2)
    left_over = build.node("Sub", [sizes, crop], "left_over")
    low = build.node("Div", [left_over, two], "low")
    odd = build.node("Mod", [left_over, two], "odd")
    up = build.node("Mul", [odd, build.node("Mod", [low, two], "low_is_odd")], "up")
    start = build.node("Add", [low, up], "start")
    end = build.node("Add", [start, crop], "end")
    return build.node("Slice", [resized, start, end, build.whole("axes", 2, 3)], "cropped")


def _nearest(build: _Builder, planes: str, sizes: str) -> str:
    """Gather the pixels that Pillow takes.

    It adds the step up in float64 and cuts, which decides the ties that (i + 1/2) * step often
    meets, so the same is done here.
    """
    half, one = build.constant("half", np.float64(0.5)), build.whole("one", 1)
    last = planes
    for axis, name in ((2, "rows"), (3, "columns")):
        place = build.whole(f"{name}_place", axis - 2)
        to = build.node("Gather", [sizes, place], f"{name}_to")
        source = build.node("Shape", [planes], f"{name}_from", start=axis, end=axis + 1)
        exact = [
            build.node("Cast", [whole], f"{whole.partition('/')[2]}_f64", to=TensorProto.DOUBLE)
            for whole in (source, to)
        ]
        step = build.node("Div", exact, f"{name}_step")
        start = build.node("Mul", [step, half], f"{name}_start")
        more = build.node("Sub", [to, one], f"{name}_more")
        steps = build.node("Expand", [step, more], f"{name}_steps")
        added = build.node("Concat", [start, steps], f"{name}_added", axis=0)
        zero = build.constant(f"{name}_axis", np.int64(0))
        sums = build.node("CumSum", [added, zero], f"{name}_sums")
        at = build.node("Cast", [sums], f"{name}_at", to=TensorProto.INT64)
        last = build.node("Gather", [last, at], name, axis=axis)
    return last


def prepend(proto: onnx.ModelProto, before: onnx.ModelProto) -> None:
    """Put the preprocessing model in front of the network, whose one input it replaces."""
    graph = proto.graph
    entry = graph.input[0]
    kind = entry.type.tensor_type.elem_type
    source = PREPROCESSED
    nodes = list(before.graph.node)
    if kind != TensorProto.FLOAT:
        source = f"{PREPROCESSED}_cast"
        nodes.append(helper.make_node("Cast", [PREPROCESSED], [source], name=source, to=kind))
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == entry.name:
                node.input[place] = source
    network = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *network])
    graph.initializer.extend(before.graph.initializer)
    del graph.input[:]
    graph.input.extend(before.graph.input)
