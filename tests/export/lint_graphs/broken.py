"""Graphs whose quantisation, tensors or types are broken."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper

from .net import BF16, CASES, FLOAT, FP8, HALF, INT4, INT8, UINT8, Case, Net, case


def _one_conv(**rounding: object) -> onnx.ModelProto:
    net = Net()
    x = net.qdq("x", **rounding)  # type: ignore[arg-type]
    return net.done(net.add("Conv", x, net.weight(16, 16, 3, 3)))


def _enter(
    name: str, verdict: str, rule: str, why: str, make: Callable[[], onnx.ModelProto]
) -> None:
    CASES.append(Case(name, verdict, rule, why, make))


for _name, _verdict, _rule, _why, _options in (
    (
        "zero_point_3",
        "blocked",
        "zero-point",
        "an int8 activation with a zero point of 3",
        {"zero": 3},
    ),
    ("uint8_zero_0", "unverified", "uint8", "builds, and clips all above 127", {"kind": UINT8}),
    (
        "uint8_zero_128",
        "blocked",
        "uint8",
        "ONNX Runtime's usual form",
        {"kind": UINT8, "zero": 128},
    ),
    ("scale_negative", "blocked", "bad-scale", "a negative scale", {"scale": -0.1}),
    ("scale_zero", "blocked", "bad-scale", "a dead ReLU gave a scale of zero", {"scale": 0.0}),
    ("scale_nan", "blocked", "bad-scale", "a calibration that saw NaN", {"scale": np.nan}),
    ("scale_inf", "unverified", "infinite-scale", "builds, and gives NaN", {"scale": np.inf}),
    (
        "int16_activation",
        "blocked",
        "quantised-type",
        "16-bit integers",
        {"kind": TensorProto.INT16},
    ),
    ("int4_activation", "blocked", "quantised-type", "4-bit activations", {"kind": INT4}),
):
    _enter(_name, _verdict, _rule, _why, lambda options=_options: _one_conv(**options))


def _weighted(*shape: int, **options: object) -> onnx.ModelProto:
    net = Net()
    return net.done(net.conv("x", out=shape[0], weight=net.weight(*shape, **options)))  # type: ignore[arg-type]


for _name, _rule, _why, _shape, _options in (
    ("weight_zero_point", "zero-point", "a weight with a zero point", (16, 16, 3, 3), {"zero": 2}),
    (
        "weight_uint8",
        "uint8-weight",
        "a weight of uint8",
        (16, 16, 3, 3),
        {"kind": UINT8, "zero": 8},
    ),
    ("too_few_scales", "scale-shape", "8 scales for 24 channels", (24, 16, 3, 3), {"steps": 8}),
    ("too_many_scales", "scale-shape", "32 scales for 24 channels", (24, 16, 3, 3), {"steps": 32}),
    ("axis_out_of_range", "scale-shape", "axis 5 of 4", (16, 16, 3, 3), {"axis": -1, "steps": 16}),
    ("weight_scale_zero", "bad-scale", "an all-zero channel", (16, 16, 3, 3), {"scale": 0.0}),
):
    _enter(
        _name, "blocked", _rule, _why,
        lambda shape=_shape, options=_options: _weighted(*shape, **options),
    )  # fmt: skip


@case("blocked", "computed-scale", "the scale is the result of an operation: crashes the builder")
def computed_scale() -> onnx.ModelProto:
    net = Net()
    step = net.add("Div", net.add("ReduceMax", "x", keepdims=0), net.number(127.0))
    zero = net.const(np.array(0, np.int8))
    q = net.add("QuantizeLinear", "x", step, zero)
    x = net.add("DequantizeLinear", q, step, zero)
    return net.done(net.add("Conv", x, net.weight(16, 16, 3, 3)))


@case("blocked", "computed-scale", "the scale is an input of the graph")
def scale_as_input() -> onnx.ModelProto:
    net = Net()
    net.inputs.append(helper.make_tensor_value_info("s", FLOAT, ()))
    zero = net.const(np.array(0, np.int8))
    q = net.add("QuantizeLinear", "x", "s", zero)
    x = net.add("DequantizeLinear", q, "s", zero)
    return net.done(net.add("Conv", x, net.weight(16, 16, 3, 3)))


@case("unverified", "uint8", "no zero point means uint8 in ONNX")
def missing_zero_point() -> onnx.ModelProto:
    net = Net()
    step = net.number(0.05)
    x = net.add("DequantizeLinear", net.add("QuantizeLinear", "x", step), step)
    return net.done(net.add("Conv", x, net.weight(16, 16, 3, 3)))


@case("blocked", "bad-scale", "a float16 scale of 1e-9 is zero")
def half_underflow() -> onnx.ModelProto:
    net = Net(dtype=HALF)
    return net.done(net.add("Conv", net.qdq("x", 1e-9), net.weight(16, 16, 3, 3)))


@case("likely", "subnormal-scale", "a float16 scale of 1e-6 has two digits left")
def half_subnormal() -> onnx.ModelProto:
    net = Net(dtype=HALF)
    return net.done(net.add("Conv", net.qdq("x", 1e-6), net.weight(16, 16, 3, 3)))


@case("blocked", "int32-bias", "a bias of int32 behind a DequantizeLinear")
def bias_int32() -> onnx.ModelProto:
    net = Net()
    bias = net.weight(16, scale=1e-4, kind=TensorProto.INT32)
    return net.done(net.conv("x", bias=bias))


@case("likely", "quantised-bias", "a bias of int8")
def bias_int8() -> onnx.ModelProto:
    net = Net()
    return net.done(net.conv("x", bias=net.weight(16, scale=1e-2)))


@case("likely", "scale-type", "float32 scales in a float16 graph, through casts")
def mixed_scales_cast() -> onnx.ModelProto:
    net = Net(dtype=HALF, opset=21)
    x = net.add("Cast", "x", to=FLOAT)
    x = net.add("Cast", net.qdq(x, scale_type=FLOAT), to=HALF)
    w = net.add("Cast", net.weight(16, 16, 3, 3, scale_type=FLOAT), to=HALF)
    return net.done(net.add("Conv", x, w))


@case("blocked", "invalid", "the convolution reads float16 and float32")
def mixed_types() -> onnx.ModelProto:
    net = Net(dtype=HALF)
    return net.done(net.add("Conv", "x", net.weight(16, 16, 3, 3, scale_type=FLOAT)))


@case("likely", "scale-type", "a float32 scale for a float16 tensor, which opset 23 allows")
def mixed_scales_23() -> onnx.ModelProto:
    net = Net(dtype=HALF, opset=23)
    both = net.scale_and_zero(0.05, INT8, 0, FLOAT)
    q = net.add("QuantizeLinear", "x", *both)
    x = net.add("DequantizeLinear", q, *both, output_dtype=HALF)
    return net.done(net.add("Conv", x, net.weight(16, 16, 3, 3)))


@case("likely", "lone-quantise", "Q without DQ: the integers are the output")
def quantised_output() -> onnx.ModelProto:
    net = Net()
    both = net.scale_and_zero(0.05, INT8, 0, None)
    y = net.add("QuantizeLinear", net.conv("x"), *both)
    return net.done(y, kinds={y: INT8})


@case("likely", "lone-quantise", "integers in, without a Q")
def quantised_input() -> onnx.ModelProto:
    net = Net()
    net.inputs = [helper.make_tensor_value_info("x", INT8, (1, 16, 32, 32))]
    both = net.scale_and_zero(0.05, INT8, 0, None)
    x = net.add("DequantizeLinear", "x", *both)
    return net.done(net.add("Conv", x, net.weight(16, 16, 3, 3)))


@case("likely", "lone-quantise", "a Q whose integers a pooling reads")
def quantised_pool() -> onnx.ModelProto:
    net = Net()
    both = net.scale_and_zero(0.05, INT8, 0, None)
    q = net.add("QuantizeLinear", net.conv("x"), *both)
    q = net.add("MaxPool", q, kernel_shape=[2, 2])
    return net.done(net.add("DequantizeLinear", q, *both))


@case("likely", "lone-quantise", "integers moved by a Reshape between Q and DQ")
def quantised_reshape() -> onnx.ModelProto:
    net = Net()
    both = net.scale_and_zero(0.05, INT8, 0, None)
    q = net.add("QuantizeLinear", net.conv("x"), *both)
    q = net.add("Reshape", q, net.const(np.array([1, -1], np.int64)))
    return net.done(net.add("DequantizeLinear", q, *both))


@case("likely", "scale-mismatch", "Q and DQ with different scales")
def requantised() -> onnx.ModelProto:
    net = Net()
    q = net.add("QuantizeLinear", "x", *net.scale_and_zero(0.05, INT8, 0, None))
    x = net.add("DequantizeLinear", q, *net.scale_and_zero(0.1, INT8, 0, None))
    return net.done(net.add("Conv", x, net.weight(16, 16, 3, 3)))


@case("likely", "per-channel-activation", "an activation with a scale for each channel")
def activation_per_channel() -> onnx.ModelProto:
    net = Net()
    x = net.qdq("x", np.full(16, 0.05), axis=1)
    return net.done(net.add("Conv", x, net.weight(16, 16, 3, 3)))


@case("likely", "half-quantised", "4-bit weights of a convolution are expanded at run time")
def int4_conv() -> onnx.ModelProto:
    net = Net()
    return net.done(net.add("Conv", "x", net.weight(16, 16, 3, 3, kind=INT4)))


@case("blocked", "quantised-type", "the wide 8-bit float type")
def float8_e5m2() -> onnx.ModelProto:
    net = Net((32, 64), HALF)
    step = net.number(0.05)
    q = net.add("QuantizeLinear", "x", step, output_dtype=TensorProto.FLOAT8E5M2)
    x = net.add("DequantizeLinear", q, step)
    return net.done(net.add("MatMul", x, net.random(64, 48)))


@case("blocked", "mixed-quantised", "an int8 input with an 8-bit float weight")
def int8_with_float8() -> onnx.ModelProto:
    net = Net((32, 64), HALF)
    w = net.weight(64, 48, axis=None, kind=FP8)
    return net.done(net.add("MatMul", net.qdq("x"), w))


@case("blocked", "invalid", "a tensor that nothing makes")
def undefined_tensor() -> onnx.ModelProto:
    net = Net()
    return net.done(net.add("Add", net.conv("x"), "nowhere"))


@case("blocked", "invalid", "an output that nothing makes")
def undefined_output() -> onnx.ModelProto:
    net = Net()
    net.conv("x")
    return net.done("nowhere")


@case("blocked", "invalid", "two nodes that wait for each other")
def cycle() -> onnx.ModelProto:
    net = Net()
    net.nodes.append(helper.make_node("Add", ["x", "b"], ["a"]))
    net.nodes.append(helper.make_node("Relu", ["a"], ["b"]))
    return net.done("b")


@case("blocked", "invalid", "two nodes make the same tensor")
def duplicate_tensor() -> onnx.ModelProto:
    net = Net()
    net.nodes.append(helper.make_node("Relu", ["x"], ["a"]))
    net.nodes.append(helper.make_node("Neg", ["x"], ["a"]))
    return net.done("a")


@case("blocked", "invalid", "a node before the one that it reads from")
def wrong_order() -> onnx.ModelProto:
    net = Net()
    net.nodes.append(helper.make_node("Relu", ["a"], ["b"]))
    net.nodes.append(helper.make_node("Neg", ["x"], ["a"]))
    return net.done("b")


@case(
    "blocked",
    "channels",
    "8 channels into a convolution of 16: ONNX's own inference does not see it",
)
def wrong_channels() -> onnx.ModelProto:
    net = Net((1, 8, 32, 32))
    return net.done(net.conv("x", quantise=False))


@case("blocked", "invalid", "shapes that do not broadcast")
def wrong_broadcast() -> onnx.ModelProto:
    net = Net()
    return net.done(net.add("Add", "x", net.random(5)))


@case("blocked", "invalid", "an attribute that the operator does not have")
def wrong_attribute() -> onnx.ModelProto:
    net = Net()
    return net.done(net.add("Relu", "x", slope=0.1))


@case("blocked", "invalid", "Gelu came with opset 20")
def operator_too_new() -> onnx.ModelProto:
    net = Net(opset=13)
    return net.done(net.add("Gelu", "x"))


@case("likely", "declared-shape", "a declared output shape that is another one")
def wrong_output_shape() -> onnx.ModelProto:
    net = Net()
    return net.done(net.conv("x"), shape=(1, 16, 99, 99))


@case("blocked", "invalid", "an output declared as float16 that is float32")
def wrong_output_type() -> onnx.ModelProto:
    net = Net()
    y = net.conv("x")
    return net.done(y, kinds={y: HALF})


@case("unverified", "bad-weight", "NaN in a weight: builds, and gives NaN")
def nan_weight() -> onnx.ModelProto:
    net = Net()
    weight = np.full((16, 16, 3, 3), np.nan, np.float32)
    return net.done(net.add("Conv", "x", net.const(weight)))


@case("unverified", "infinite-scale", "a bfloat16 scale of infinity")
def bfloat16_inf() -> onnx.ModelProto:
    net = Net(dtype=BF16, opset=22)
    return net.done(net.add("Conv", net.qdq("x", np.inf), net.weight(16, 16, 3, 3)))
