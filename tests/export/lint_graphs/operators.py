"""Graphs of operators, data types and opsets that an engine may or may not have."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from .net import CASES, FLOAT, INT8, UINT8, Case, Net, case

INT64, BOOL, DOUBLE, STRING = (
    TensorProto.INT64, TensorProto.BOOL, TensorProto.DOUBLE, TensorProto.STRING,
)  # fmt: skip


def _single(
    op: str, verdict: str, rule: str | None, *inputs: Any, outputs: int = 1, opset: int = 21,
    shape: tuple[int, ...] = (1, 16, 8, 8), kind: int = FLOAT, **attributes: Any,
) -> None:  # fmt: skip
    """Enter a graph of one operator on x; the other inputs are constants."""

    def make() -> onnx.ModelProto:
        net = Net(shape, opset=opset)
        y = net.add(op, "x", *map(net.const, inputs), outputs=outputs, **attributes)
        return net.done(y, kinds={y: kind})

    CASES.append(Case(f"operator_{op}", verdict, rule, f"{op} alone", make))


_NO = "unsupported-operator"
_single("Unique", "blocked", _NO, outputs=4)
_single("Det", "blocked", _NO, shape=(4, 8, 8))
_single("Bernoulli", "blocked", _NO)
_single("Multinomial", "blocked", _NO, shape=(2, 8), kind=TensorProto.INT32)
_single("MelWeightMatrix", "blocked", "invalid")
_single("DynamicQuantizeLinear", "blocked", _NO, outputs=3, kind=UINT8)
_single("MaxUnpool", "blocked", _NO, np.zeros((1, 16, 8, 8), np.int64), kernel_shape=[2, 2])
_single("CumSum", "likely", None, np.array(1, np.int64))
_single("HardSwish", "likely", None)
_single("Mish", "likely", None)
_single("ArgMax", "likely", None, axis=1, kind=INT64)
_single("InstanceNormalization", "likely", None, np.ones(16, np.float32), np.ones(16, np.float32))
_single("Einsum", "likely", None, shape=(4, 8, 8), equation="bij->bji")


@case("blocked", _NO, "the number of results depends on the values")
def non_zero() -> onnx.ModelProto:
    net = Net((8, 8))
    y = net.add("NonZero", "x")
    return net.done(y, kinds={y: INT64})


@case("blocked", _NO, "suppression inside the graph: the parser says yes, the builder no")
def non_max_suppression() -> onnx.ModelProto:
    net = Net((1, 100, 4))
    net.inputs.append(helper.make_tensor_value_info("s", FLOAT, (1, 5, 100)))
    most = net.const(np.array([10], np.int64))
    y = net.add("NonMaxSuppression", "x", "s", most, net.number(0.5), net.number(0.1))
    return net.done(y, kinds={y: INT64})


@case("blocked", _NO, "regions of interest, the same")
def roi_align() -> onnx.ModelProto:
    net = Net()
    boxes = net.const(np.array([[0, 0, 8, 8]], np.float32))
    return net.done(net.add("RoiAlign", "x", boxes, net.const(np.array([0], np.int64))))


@case("blocked", _NO, "ONNX Runtime's quantised convolution operator")
def qlinear_conv() -> onnx.ModelProto:
    net = Net()
    q = net.scale_and_zero(0.05, INT8, 0, None)
    w = net.const(np.ones((16, 16, 3, 3), np.int8))
    x = net.add("QuantizeLinear", "x", *q)
    y = net.add("QLinearConv", x, *q, w, *net.scale_and_zero(0.01, INT8, 0, None), *q)
    return net.done(net.add("DequantizeLinear", y, *q))


@case("blocked", _NO, "integer convolution without scales")
def conv_integer() -> onnx.ModelProto:
    net = Net()
    net.inputs = [helper.make_tensor_value_info("x", UINT8, (1, 16, 32, 32))]
    y = net.add("ConvInteger", "x", net.const(np.ones((16, 16, 3, 3), np.uint8)))
    return net.done(y, kinds={y: TensorProto.INT32})


@case("blocked", _NO, "strings")
def strings() -> onnx.ModelProto:
    net = Net((4,))
    net.inputs = [helper.make_tensor_value_info("x", STRING, (4,))]
    y = net.add("StringNormalizer", "x", case_change_action="LOWER")
    return net.done(y, kinds={y: STRING})


@case("blocked", _NO, "an operator of machine learning before networks")
def tree_ensemble() -> onnx.ModelProto:
    net = Net((4, 8))
    net.domains = {"ai.onnx.ml": 3}
    y = net.add("Normalizer", "x", domain="ai.onnx.ml", norm="L2")
    return net.done(y)


@case("blocked", _NO, "a sequence of tensors")
def sequence() -> onnx.ModelProto:
    net = Net()
    s = net.add("SequenceConstruct", "x", "x")
    return net.done(net.add("SequenceAt", s, net.const(np.array(0, np.int64))))


@case("unverified", "custom-domain", "a contributed operator of ONNX Runtime")
def microsoft_domain() -> onnx.ModelProto:
    net = Net()
    net.domains = {"com.microsoft": 1}
    return net.done(
        net.add("FusedConvolution", "x", net.random(16, 16, 3, 3), domain="com.microsoft")
    )


@case("unverified", "custom-domain", "somebody's plugin")
def plugin_domain() -> onnx.ModelProto:
    net = Net()
    net.domains = {"my.plugins": 1}
    y = net.conv("x")
    return net.done(net.add("FancyPool", y, domain="my.plugins"))


@case("blocked", "invalid", "no such operator in ONNX")
def no_such_operator() -> onnx.ModelProto:
    net = Net()
    return net.done(net.add("Convolve", "x"))


@case("blocked", "invalid", "a domain that the file does not import")
def domain_not_imported() -> onnx.ModelProto:
    net = Net()
    return net.done(net.add("FancyPool", "x", domain="my.plugins"))


@case("likely", "float64", "float64 arithmetic")
def doubles() -> onnx.ModelProto:
    net = Net()
    net.inputs = [helper.make_tensor_value_info("x", DOUBLE, (1, 16))]
    y = net.add("Add", "x", net.const(np.ones(16)))
    return net.done(y, kinds={y: DOUBLE})


@case("likely", "float64", "a convolution in float64 behind a cast")
def double_inside() -> onnx.ModelProto:
    net = Net()
    wide = net.add("Cast", "x", to=DOUBLE)
    y = net.add("Conv", wide, net.const(np.ones((16, 16, 3, 3))))
    return net.done(net.add("Cast", y, to=FLOAT))


@case("blocked", "unsupported-type", "16-bit integers")
def int16_input() -> onnx.ModelProto:
    net = Net()
    net.inputs = [helper.make_tensor_value_info("x", TensorProto.INT16, (1, 16))]
    return net.done(net.add("Cast", "x", to=FLOAT))


@case("likely", None, "pixels as uint8, cast to float at once: the camera's form")
def uint8_input() -> onnx.ModelProto:
    net = Net()
    net.inputs = [helper.make_tensor_value_info("x", UINT8, (1, 16, 32, 32))]
    x = net.add("Div", net.add("Cast", "x", to=FLOAT), net.number(255.0))
    return net.done(net.conv(x))


@case("blocked", "unsupported-type", "arithmetic on uint8")
def uint8_arithmetic() -> onnx.ModelProto:
    net = Net()
    net.inputs = [helper.make_tensor_value_info("x", UINT8, (1, 16, 32, 32))]
    y = net.add("Add", "x", net.const(np.array(1, np.uint8)))
    return net.done(net.add("Cast", y, to=FLOAT))


@case("likely", None, "64-bit integers and booleans compute")
def int64_compute() -> onnx.ModelProto:
    net = Net((4, 8))
    best = net.add("ArgMax", "x", axis=1, keepdims=0)
    y = net.add("Add", best, net.const(np.array(1, np.int64)))
    more = net.add("Greater", y, net.const(np.array(3, np.int64)))
    return net.done(net.add("Cast", more, to=FLOAT))


@case("unverified", "opset", "opset 4")
def opset_4() -> onnx.ModelProto:
    net = Net(opset=4)
    return net.done(net.add("Relu", "x"))


@case("likely", None, "opset 9")
def opset_9() -> onnx.ModelProto:
    net = Net(opset=9)
    return net.done(net.add("Relu", net.conv("x", quantise=False)))


@case("likely", None, "the newest opset but two")
def opset_newest() -> onnx.ModelProto:
    net = Net(opset=26)
    return net.done(net.add("Relu", net.conv("x", quantise=False)))


@case("unverified", "opset", "an opset that does not exist yet")
def opset_future() -> onnx.ModelProto:
    net = Net(opset=99)
    return net.done(net.add("Relu", "x"))


@case("unverified", "control-flow", "Loop with a fixed number of rounds")
def loop() -> onnx.ModelProto:
    net = Net((4,))
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["again"]),
            helper.make_node("Add", ["value", "x"], ["sum"]),
        ],
        "body",
        [info("i", INT64, ()), info("go", BOOL, ()), info("value", FLOAT, (4,))],
        [info("again", BOOL, ()), info("sum", FLOAT, (4,))],
    )
    rounds, go = net.const(np.array(3, np.int64)), net.const(np.array(True))
    return net.done(net.add("Loop", rounds, go, "x", body=body))


@case("unverified", "control-flow", "Scan over the rows")
def scan() -> onnx.ModelProto:
    net = Net((3, 4))
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Add", ["state", "row"], ["next"]),
            helper.make_node("Identity", ["next"], ["out"]),
        ],
        "body",
        [info("state", FLOAT, (4,)), info("row", FLOAT, (4,))],
        [info("next", FLOAT, (4,)), info("out", FLOAT, (4,))],
    )
    start = net.const(np.zeros(4, np.float32))
    net.add("Scan", start, "x", outputs=2, body=body, num_scan_inputs=1)
    return net.done(net.nodes[-1].output[1])


@case("likely", None, "recurrence")
def lstm() -> onnx.ModelProto:
    net = Net((5, 1, 8))
    w, r = net.random(1, 64, 8), net.random(1, 64, 16)
    return net.done(net.add("LSTM", "x", w, r, outputs=3, hidden_size=16))


@case("likely", None, "a constant that is an output as well")
def initializer_as_output() -> onnx.ModelProto:
    net = Net()
    anchors = net.random(10, 4)
    return net.done(net.conv("x"), anchors)


@case("likely", None, "an input that is an output as well")
def input_as_output() -> onnx.ModelProto:
    net = Net()
    return net.done(net.conv("x"), "x", shape=(1, 16, 32, 32))


@case("likely", None, "a convolution over a sequence")
def conv_1d() -> onnx.ModelProto:
    net = Net((1, 16, 64))
    return net.done(net.add("Conv", net.qdq("x"), net.weight(16, 16, 3), pads=[1, 1]))


@case("likely", None, "a convolution over a volume")
def conv_3d() -> onnx.ModelProto:
    net = Net((1, 16, 8, 8, 8))
    return net.done(net.add("Conv", net.qdq("x"), net.weight(16, 16, 3, 3, 3), pads=[1] * 6))


@case("blocked", "unsupported-option", "batch norm as in training")
def training_batch_norm() -> onnx.ModelProto:
    net = Net()
    ones = [net.const(np.ones(16, np.float32)) for _ in range(4)]
    net.add("BatchNormalization", net.conv("x"), *ones, outputs=3, training_mode=1)
    return net.done(net.nodes[-1].output[0])


@case("blocked", "too-large", "35 trillion elements from one number")
def huge_tensor() -> onnx.ModelProto:
    net = Net()
    return net.done(net.add("ConstantOfShape", net.const(np.array([1 << 45], np.int64))))
