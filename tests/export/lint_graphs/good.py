"""Graphs that build, from a float convolution to quantised attention; some deserve a warning."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from .net import BF16, FP8, HALF, INT4, INT8, Net, case


@case("likely", None, "nothing is quantised")
def float_conv() -> onnx.ModelProto:
    net = Net()
    return net.done(net.add("Relu", net.conv("x", quantise=False)))


@case("likely", None, "the form that fuses: Q/DQ on the inputs, nothing before the ReLU")
def conv_bn_relu() -> onnx.ModelProto:
    net = Net()
    y = net.conv("x")
    ones = [net.const(np.ones(16, np.float32)) for _ in range(4)]
    y = net.add("Relu", net.add("BatchNormalization", y, *ones))
    return net.done(net.conv(y))


@case("likely", None, "of a residual addition the shortcut alone is quantised")
def residual() -> onnx.ModelProto:
    net = Net()
    start = net.add("Relu", net.conv("x"))
    y = net.conv(net.add("Relu", net.conv(start)))
    return net.done(net.add("Relu", net.add("Add", y, net.qdq(start))))


@case("likely", None, "concatenation with one scale for all")
def concat_one_scale() -> onnx.ModelProto:
    net = Net()
    a, b = net.add("Relu", net.conv("x")), net.add("Relu", net.conv("x"))
    y = net.add("Concat", net.qdq(a), net.qdq(b), axis=1)
    return net.done(net.conv(y, into=32))


@case("likely", None, "the gate of squeeze-and-excite stays in floating point")
def squeeze_excite() -> onnx.ModelProto:
    net = Net()
    y = net.add("Relu", net.conv("x"))
    pooled = net.add("GlobalAveragePool", y)
    gate = net.add("Relu", net.conv(pooled, out=4, kernel=1, quantise=False))
    gate = net.add("Sigmoid", net.conv(gate, into=4, kernel=1, quantise=False))
    return net.done(net.conv(net.add("Mul", y, gate)))


@case("likely", None, "SiLU with nothing inside")
def silu() -> onnx.ModelProto:
    net = Net()
    y = net.conv("x")
    return net.done(net.conv(net.add("Mul", y, net.add("Sigmoid", y))))


def _attention(net: Net, inside: bool = False) -> str:
    """One head over [1, 16, 32]; with `inside` the softmax is quantised where it should not be."""
    q, k, v = (net.add("MatMul", net.qdq("x"), net.weight(32, 32, axis=1)) for _ in range(3))
    k = net.add("Transpose", k, perm=[0, 2, 1])
    score = net.add("Mul", net.add("MatMul", net.qdq(q), net.qdq(k)), net.number(0.17))
    if inside:
        score = net.qdq(score)
    p = net.add("Softmax", score, axis=-1)
    return net.add("MatMul", net.qdq(p, 1 / 127), net.qdq(v))


@case("likely", None, "both inputs of each product are quantised, the softmax is not")
def attention() -> onnx.ModelProto:
    net = Net((1, 16, 32))
    return net.done(_attention(net))


@case("likely", None, "a whole block: attention, LayerNorm, GELU by Erf")
def transformer_block() -> onnx.ModelProto:
    net = Net((1, 16, 32), opset=20)
    y = net.add("Add", "x", _attention(net))
    ones, zeros = (net.const(np.full(32, v, np.float32)) for v in (1, 0))
    y = net.add("LayerNormalization", y, ones, zeros, axis=-1)
    h = net.add("MatMul", net.qdq(y), net.weight(32, 64, axis=1))
    erf = net.add("Erf", net.add("Div", h, net.number(1.41421)))
    h = net.add("Mul", net.add("Mul", h, net.add("Add", erf, net.number(1.0))), net.number(0.5))
    return net.done(net.add("Add", y, net.add("MatMul", net.qdq(h), net.weight(64, 32, axis=1))))


@case("likely", None, "the GELU operator in one piece")
def gelu_operator() -> onnx.ModelProto:
    net = Net((1, 16, 32))
    h = net.add("Gelu", net.add("MatMul", net.qdq("x"), net.weight(32, 64, axis=1)))
    return net.done(net.add("MatMul", net.qdq(h), net.weight(64, 32, axis=1)))


@case("likely", None, "the channels of a transposed convolution's weight are axis 1")
def conv_transpose() -> onnx.ModelProto:
    net = Net()
    weight = net.weight(16, 24, 2, 2, axis=1)
    return net.done(net.add("ConvTranspose", net.qdq("x"), weight, strides=[2, 2]))


@case("likely", None, "depthwise with channels in eights")
def depthwise() -> onnx.ModelProto:
    net = Net()
    return net.done(net.conv(net.add("Relu", net.conv("x", groups=16))))


@case("likely", None, "grouped convolution")
def grouped() -> onnx.ModelProto:
    net = Net((1, 32, 16, 16))
    return net.done(net.conv("x", into=32, out=32, groups=4))


@case("likely", None, "Gemm with transB has its channels on axis 0")
def gemm_transposed() -> onnx.ModelProto:
    net = Net((32, 64))
    bias = net.random(48)
    return net.done(net.add("Gemm", net.qdq("x"), net.weight(48, 64), bias, transB=1))


@case("likely", None, "Gemm without transB has its channels on axis 1")
def gemm_straight() -> onnx.ModelProto:
    net = Net((32, 64))
    return net.done(net.add("Gemm", net.qdq("x"), net.weight(64, 48, axis=1)))


@case("likely", None, "a float16 graph with float16 scales")
def float16_graph() -> onnx.ModelProto:
    net = Net(dtype=HALF)
    return net.done(net.conv(net.add("Relu", net.conv("x"))))


@case("likely", None, "a bfloat16 graph with bfloat16 scales")
def bfloat16_graph() -> onnx.ModelProto:
    net = Net(dtype=BF16, opset=22)
    return net.done(net.conv(net.add("Relu", net.conv("x"))))


@case("likely", "dynamic-shape", "the batch is given when the engine is built")
def dynamic_batch() -> onnx.ModelProto:
    net = Net(("batch", 16, 32, 32))
    return net.done(net.conv("x"))


@case("likely", "dynamic-shape", "height and width too")
def dynamic_size() -> onnx.ModelProto:
    net = Net(("batch", 16, "height", "width"))
    return net.done(net.add("MaxPool", net.conv("x"), kernel_shape=[2, 2], strides=[2, 2]))


@case("likely", None, "4-bit weights in blocks of 32 rows, activations in float16")
def int4_blocks() -> onnx.ModelProto:
    net = Net((8, 64), HALF)
    stored = net.const(net.rng.integers(-7, 8, (64, 32)).astype(np.int8), "w8")
    net.constants[-1] = helper.make_tensor(
        stored, INT4, (64, 32), net.rng.integers(-7, 8, 64 * 32).tolist()
    )
    steps = net.const(np.full((2, 32), 0.01, np.float16), "scale")
    weight = net.add("DequantizeLinear", stored, steps, axis=0, block_size=32)
    return net.done(net.add("MatMul", "x", weight))


@case("likely", None, "8-bit floating point, both sides")
def float8_matmul() -> onnx.ModelProto:
    net = Net((32, 64), HALF)
    x = net.qdq("x", kind=FP8)
    return net.done(net.add("MatMul", x, net.weight(64, 48, axis=None, kind=FP8)))


@case("likely", None, "8-bit floating point convolution")
def float8_conv() -> onnx.ModelProto:
    net = Net(dtype=HALF)
    weight = net.weight(16, 16, 3, 3, axis=None, kind=FP8)
    return net.done(net.add("Conv", net.qdq("x", kind=FP8), weight, pads=[1] * 4))


@case("likely", None, "max pooling commutes with rounding")
def maxpool_between() -> onnx.ModelProto:
    net = Net()
    y = net.qdq(net.add("Relu", net.conv("x")))
    y = net.add("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    return net.done(net.add("Conv", net.qdq(y), net.weight(16, 16, 3, 3)))


@case("likely", None, "max pooling between the rounding and the convolution that reads it")
def maxpool_after_rounding() -> onnx.ModelProto:
    net = Net()
    y = net.qdq(net.add("Relu", net.conv("x")))
    y = net.add("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    return net.done(net.add("Conv", y, net.weight(16, 16, 3, 3)))


@case("likely", None, "a classifier head after global pooling")
def pooled_head() -> onnx.ModelProto:
    net = Net()
    pooled = net.add("GlobalAveragePool", net.add("Relu", net.conv("x")))
    flat = net.add("Flatten", pooled)
    return net.done(net.add("Gemm", flat, net.random(10, 16), net.random(10), transB=1))


@case("likely", None, "resizing by two")
def resize() -> onnx.ModelProto:
    net = Net()
    scales = net.const(np.array([1, 1, 2, 2], np.float32))
    y = net.add("Resize", net.conv("x"), "", scales, mode="linear")
    return net.done(net.conv(y))


@case("likely", None, "opset 13, before 16-bit scales")
def opset_13() -> onnx.ModelProto:
    net = Net(opset=13)
    return net.done(net.conv(net.add("Relu", net.conv("x"))))


@case("likely", None, "Q without a zero point, its type said by an attribute")
def output_dtype() -> onnx.ModelProto:
    net = Net()
    step = net.number(0.05)
    q = net.add("QuantizeLinear", "x", step, output_dtype=INT8)
    x = net.add("DequantizeLinear", q, step)
    return net.done(net.add("Conv", x, net.weight(16, 16, 3, 3), pads=[1] * 4))


@case("likely", None, "one rounded tensor read twice")
def shared_quantiser() -> onnx.ModelProto:
    net = Net()
    x = net.qdq("x")
    a, b = (net.add("Conv", x, net.weight(16, 16, 3, 3), pads=[1] * 4) for _ in range(2))
    return net.done(a, b)


@case("likely", None, "one Q with two DQ")
def two_dequantisers() -> onnx.ModelProto:
    net = Net()
    both = net.scale_and_zero(0.05, INT8, 0, None)
    q = net.add("QuantizeLinear", "x", *both)
    a, b = (
        net.add("Conv", net.add("DequantizeLinear", q, *both), net.weight(16, 16, 3, 3))
        for _ in range(2)
    )
    return net.done(net.add("Add", a, b))


@case("likely", "float-weight-copy", "the weight is stored in float32 before its Q")
def float_weight_copy() -> onnx.ModelProto:
    net = Net()
    weight = net.qdq(net.random(16, 16, 3, 3), np.full(16, 0.01), axis=0)
    return net.done(net.add("Conv", net.qdq("x"), weight))


@case("likely", "per-tensor-weight", "one scale for the whole weight costs accuracy")
def weight_per_tensor() -> onnx.ModelProto:
    net = Net()
    return net.done(net.add("Conv", net.qdq("x"), net.weight(16, 16, 3, 3, axis=None)))


@case("likely", "half-quantised", "an int8 weight alone: the product runs in floating point")
def weight_only() -> onnx.ModelProto:
    net = Net()
    return net.done(net.add("Conv", "x", net.weight(16, 16, 3, 3)))


@case("likely", "half-quantised", "a rounded input with a float weight")
def activation_only() -> onnx.ModelProto:
    net = Net()
    return net.done(net.add("Conv", net.qdq("x"), net.random(16, 16, 3, 3)))


@case("likely", "wrong-axis", "16 channels in and out, scales along the input's: builds in silence")
def wrong_axis_conv() -> onnx.ModelProto:
    net = Net()
    return net.done(net.conv("x", weight=net.weight(16, 16, 3, 3, axis=1)))


@case("likely", "wrong-axis", "a transposed convolution's channels are not axis 0")
def wrong_axis_conv_transpose() -> onnx.ModelProto:
    net = Net()
    weight = net.weight(16, 24, 2, 2, axis=0)
    return net.done(net.add("ConvTranspose", net.qdq("x"), weight, strides=[2, 2]))


@case("likely", "wrong-axis", "a matrix product's output channels are the last axis")
def wrong_axis_matmul() -> onnx.ModelProto:
    net = Net((32, 64))
    return net.done(net.add("MatMul", net.qdq("x"), net.weight(64, 48, axis=0)))


@case("likely", "wrong-axis", "Gemm with transB has its channels on axis 0, not 1")
def wrong_axis_gemm() -> onnx.ModelProto:
    net = Net((32, 64))
    return net.done(net.add("Gemm", net.qdq("x"), net.weight(48, 64, axis=1), transB=1))


@case("likely", "split-fusion", "a rounding between convolution and ReLU")
def quantised_before_relu() -> onnx.ModelProto:
    net = Net()
    y = net.add("Relu", net.qdq(net.conv("x")))
    return net.done(net.conv(y))


@case("likely", "split-fusion", "a rounding between convolution and batch norm")
def quantised_before_bn() -> onnx.ModelProto:
    net = Net()
    ones = [net.const(np.ones(16, np.float32)) for _ in range(4)]
    y = net.add("BatchNormalization", net.qdq(net.conv("x")), *ones)
    return net.done(net.conv(net.add("Relu", y)))


@case("likely", "both-branches", "both branches of the addition are rounded")
def residual_both() -> onnx.ModelProto:
    net = Net()
    start = net.add("Relu", net.conv("x"))
    y = net.qdq(net.conv(net.add("Relu", net.conv(start))))
    return net.done(net.add("Relu", net.add("Add", y, net.qdq(start))))


@case("likely", "concat-scales", "concatenation of tensors with different scales")
def concat_two_scales() -> onnx.ModelProto:
    net = Net()
    a, b = net.add("Relu", net.conv("x")), net.add("Relu", net.conv("x"))
    y = net.add("Concat", net.qdq(a, 0.05), net.qdq(b, 0.02), axis=1)
    return net.done(net.conv(y, into=32))


@case("likely", "quantised-inside", "the softmax reads a rounded tensor")
def softmax_quantised() -> onnx.ModelProto:
    net = Net((1, 16, 32))
    return net.done(_attention(net, inside=True))


@case("likely", "quantised-inside", "LayerNorm reads a rounded tensor")
def layernorm_quantised() -> onnx.ModelProto:
    net = Net((1, 16, 32))
    ones, zeros = (net.const(np.full(32, v, np.float32)) for v in (1, 0))
    h = net.add("MatMul", net.qdq("x"), net.weight(32, 32, axis=1))
    y = net.add("LayerNormalization", net.qdq(h), ones, zeros, axis=-1)
    return net.done(net.add("MatMul", net.qdq(y), net.weight(32, 32, axis=1)))


@case("likely", "quantised-inside", "a rounding inside SiLU")
def silu_quantised() -> onnx.ModelProto:
    net = Net()
    y = net.conv("x")
    gate = net.add("Sigmoid", net.qdq(y))
    return net.done(net.conv(net.add("Mul", y, gate)))


@case("likely", "odd-channels", "depthwise with 12 channels")
def depthwise_odd() -> onnx.ModelProto:
    net = Net((1, 12, 16, 16))
    return net.done(net.conv("x", into=12, out=12, groups=12))


@case("likely", "small-matmul", "one row per image gains nothing")
def one_row() -> onnx.ModelProto:
    net = Net((1, 64))
    return net.done(net.add("Gemm", net.qdq("x"), net.weight(48, 64), transB=1))


@case("likely", None, "a function of the file's own, which is expanded")
def local_function() -> onnx.ModelProto:
    net = Net()
    opset = [helper.make_opsetid("", 21)]
    nodes = [helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Neg", ["r"], ["b"])]
    net.functions = [helper.make_function("mine", "NegRelu", ["a"], ["b"], nodes, opset)]
    net.domains = {"mine": 1}
    y = net.name("f")
    net.nodes.append(helper.make_node("NegRelu", ["x"], [y], domain="mine", name="call"))
    return net.done(net.conv(y))


@case("likely", None, "the operators between layers: slice, split, pad, gather, where, clip")
def movers() -> onnx.ModelProto:
    net = Net((2, 16, 16, 16))
    ints = [net.const(np.array(v, np.int64)) for v in ([0], [8], [1])]
    y = net.add("Slice", "x", ints[0], ints[1], ints[2])
    y = net.add("Pad", y, net.const(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)), mode="reflect")
    y = net.add("Clip", y, net.number(-1.0), net.number(1.0))
    y = net.add("Gather", y, net.const(np.array([0, 2, 4], np.int64)), axis=1)
    positive = net.add("Greater", y, net.number(0.0))
    y = net.add("Where", positive, y, net.add("Neg", y))
    net.add("Split", y, axis=2, num_outputs=2, outputs=2)
    y = net.nodes[-1].output[1]
    y = net.add("DepthToSpace", net.add("Expand", y, ints[2]), blocksize=1)
    return net.done(net.add("TopK", y, ints[2], outputs=2, axis=-1))


@case("unverified", "control-flow", "a branch that depends on a value")
def branch() -> onnx.ModelProto:
    net = Net()
    sides = []
    for op in ("Relu", "Sigmoid"):
        out = helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, (1, 16, 32, 32))
        node = helper.make_node(op, ["x"], [f"{op}_out"], name=f"inner_{op}")
        sides.append(helper.make_graph([node], op, [], [out]))
    total = net.add("ReduceSum", "x", keepdims=0)
    condition = net.add("Greater", total, net.number(0.0))
    return net.done(net.add("If", condition, then_branch=sides[0], else_branch=sides[1]))
