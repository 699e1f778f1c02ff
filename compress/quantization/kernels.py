"""Times of ONNX Runtime's kernels for one layer, in int8 and in floating point, on this machine.

Most layers are faster in int8. Some kernels are not: on an x86 with VNNI, ONNX Runtime 1.32 takes
4 ms for a grouped convolution of 48 to 96 channels and 7 x 7 places in int8, and 0.2 ms in float.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from vcompress.bench.bundle.atomic import temporary_folder
from vcompress.export.graph import Graph
from vcompress.export.operator_times import operator_times
from vcompress.export.rewrite import keep_weights_float

RUNS = 15
OPSET = 20


@dataclass(frozen=True)
class Convolution:
    """The geometry of a two-dimensional convolution, and the size of its input."""

    channels: int
    made: int
    """Output channels."""
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Times:
    """Milliseconds of one image in one thread."""

    int8: float
    """The integer kernel."""
    float32: float
    """The kernel in floating point with the conversions before and after it."""


@functools.lru_cache(maxsize=4096)
def conv_times(conv: Convolution) -> Times:
    """Both kernels between tensors of integers, in ONNX Runtime on the CPU."""
    feed = {"input": np.zeros((1, conv.channels, *conv.size), np.float32)}
    with temporary_folder() as folder:
        times = [
            operator_times(_write(folder / f"{int8}.onnx", conv, int8), feed, runs=RUNS)
            for int8 in (True, False)
        ]
    return Times(_of(times[0], "Conv"), _of(times[1], "Conv", "Reorder") + _of(times[1], "Q") / 2)


def _of(times: Mapping[str, float], *names: str) -> float:
    """The time of the kernels whose names hold one of `names`; `Q` stands for conversions."""
    if names == ("Q",):
        names = ("QuantizeLinear", "DequantizeLinear")
        return sum(ms for kernel, ms in times.items() if kernel in names)
    return sum(ms for kernel, ms in times.items() if any(name in kernel for name in names))


def _write(file: Path, conv: Convolution, int8: bool) -> Path:
    """A file of that convolution between two roundings."""
    shape = (conv.made, conv.channels // conv.groups, *conv.kernel)
    weight = np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8)
    constants: dict[str, Any] = {
        "step": np.float32(0.02), "zero": np.uint8(128), "out_step": np.float32(0.1),
        "weight_step": np.full(conv.made, 0.01, np.float32),
        "weight_zero": np.zeros(conv.made, np.int8), "integers": weight,
        "floats": weight.astype(np.float32) * np.float32(0.01),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "step", "zero"], ["given"]),
        helper.make_node("DequantizeLinear", ["given", "step", "zero"], ["x"]),
        helper.make_node(
            "DequantizeLinear", ["integers", "weight_step", "weight_zero"], ["weight"], axis=0
        ),
        helper.make_node(
            "Conv", ["x", "weight" if int8 else "floats"], ["y"], kernel_shape=conv.kernel,
            strides=conv.stride, dilations=conv.dilation, group=conv.groups,
            pads=[d * (k // 2) for k, d in zip(conv.kernel, conv.dilation, strict=True)] * 2,
        ),
        helper.make_node("QuantizeLinear", ["y", "out_step", "zero"], ["made"]),
        helper.make_node("DequantizeLinear", ["made", "out_step", "zero"], ["out"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        [node for node in nodes if int8 or node.output[0] != "weight"], "layer",
        [helper.make_tensor_value_info("input", 1, [1, conv.channels, *conv.size])],
        [helper.make_tensor_value_info("out", 1, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    if not int8:
        rewritten = Graph(model)
        keep_weights_float(rewritten)
        rewritten.write_back()
    file.write_bytes(model.SerializeToString())
    return file
