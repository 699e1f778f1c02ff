"""Operators, options and data types that TensorRT does not have, as builds have shown.

The classic TensorRT shares the parser and was not built with here: its two lists beyond that come
from NVIDIA's documentation. An operator is known if it built with TensorRT-RTX 1.7 in ONNX's own
conformance graphs (one or more for every operator) or in the labelled set of the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
from onnx import NodeProto, TensorProto

from ..graph import attribute
from .findings import Say
from .view import View, label, type_name

OPSETS = (7, 28)
"""The oldest and the newest opset of the default domain that was built."""
MOST_ELEMENTS = 2**40
_T = TensorProto

_KNOWN = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool
    BatchNormalization Cast CastLike Ceil Celu Clip Concat Constant ConstantOfShape Conv
    ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf
    Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm
    GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization
    HardSigmoid HardSwish Hardmax Identity InstanceNormalization IsInf IsNaN LRN LSTM
    LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LpPool MatMul Max
    MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg Not Or PRelu Pad Pow
    QuantizeLinear RMSNormalization RNN RandomUniformLike Range Reciprocal ReduceL1 ReduceL2
    ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare Relu Reshape Resize ReverseSequence RotaryEmbedding Round Scatter
    ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus
    Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh ThresholdedRelu
    Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
    """
KNOWN = frozenset(_KNOWN.split())
CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
_REFUSED = """
    AffineGrid Bernoulli BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor
    BlackmanWindow CausalConvWithState CenterCropPad Col2Im Compress ConcatFromSequence ConvInteger
    CumProd DFT DeformConv Det DynamicQuantizeLinear HammingWindow HannWindow ImageDecoder
    LinearAttention MatMulInteger MaxRoiPool MaxUnpool MelWeightMatrix Multinomial
    NegativeLogLikelihoodLoss NonMaxSuppression NonZero Optional OptionalGetElement
    OptionalHasElement QLinearConv QLinearMatMul RegexFullMatch RoiAlign STFT SequenceAt
    SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SequenceMap
    SoftmaxCrossEntropyLoss SplitToSequence StringConcat StringNormalizer StringSplit SwiGLU
    TfIdfVectorizer Unique
    """
REFUSED = frozenset(_REFUSED.split())
"""What TensorRT-RTX does not build."""
ONLY_CLASSIC = frozenset({"NonMaxSuppression", "NonZero", "OneHot", "RoiAlign", "DeformConv"})
"""What NVIDIA documents for the classic TensorRT and TensorRT-RTX refuses; not built here."""
_MISSING = """
    BitShift Compress ConcatFromSequence ConvInteger Det DynamicQuantizeLinear MatMulInteger
    MaxRoiPool MaxUnpool Multinomial NegativeLogLikelihoodLoss QLinearConv QLinearMatMul SequenceAt
    SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength
    SoftmaxCrossEntropyLoss SplitToSequence StringNormalizer TfIdfVectorizer Unique
    """
DOCUMENTED_AS_MISSING = frozenset(_MISSING.split())
"""What the parser's list of operators says that the classic TensorRT does not have:
https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md"""
_TYPES = frozenset(
    {
        _T.FLOAT, _T.FLOAT16, _T.BFLOAT16, _T.DOUBLE, _T.INT8, _T.UINT8, _T.INT32, _T.INT64,
        _T.BOOL, _T.INT4, _T.FLOAT8E4M3FN, _T.FLOAT4E2M1,
    }
)  # fmt: skip
_QUANTISED_ONLY = frozenset({_T.INT4, _T.FLOAT8E4M3FN, _T.FLOAT4E2M1})
_QDQ = ("QuantizeLinear", "DequantizeLinear")
# Which input must be a constant.
_CONSTANTS: dict[str, tuple[int, ...]] = {
    **{f"Reduce{n}": (1,) for n in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min",
                                    "Prod", "Sum", "SumSquare")},
    "Dropout": (2,), "Squeeze": (1,), "Unsqueeze": (1,), "CumSum": (1,),
}  # fmt: skip
# Inputs whose values decide about shapes.
_SHAPES: dict[str, tuple[int, ...]] = {
    "Reshape": (1,), "Expand": (1,), "Tile": (1,), "ConstantOfShape": (0,), "Slice": (1, 2, 3, 4),
    "Pad": (1, 3), "Resize": (2, 3), "Upsample": (1,), "Range": (0, 1, 2), "TopK": (1,),
    "Split": (1,), "OneHot": (1,), "Trilu": (1,),
}  # fmt: skip


def check_rtx(view: View, say: Say) -> None:
    """Operators, options, types and shapes of a graph and of those within it, for TensorRT-RTX."""
    _check(view, say, KNOWN, REFUSED, "TensorRT-RTX")


def check_classic(view: View, say: Say) -> None:
    """The same for the classic TensorRT. What neither built nor is documented is unknown."""
    _check(view, say, KNOWN | ONLY_CLASSIC, DOCUMENTED_AS_MISSING, "TensorRT")


def _check(
    view: View, say: Say, known: frozenset[str], refused: frozenset[str], target: str
) -> None:
    _inputs(view, say)
    for inner in view.all():
        for node in inner.nodes:
            if node.domain not in ("", "ai.onnx"):
                _foreign(node, say)
            elif node.op_type in refused:
                say("unsupported-operator", label(node), f"{target} has no {node.op_type}")
            elif node.op_type in CONTROL_FLOW:
                say("control-flow", label(node), f"{node.op_type}")
            elif node.op_type not in known:
                say("unknown-operator", label(node), f"{node.op_type} was never seen to build")
            else:
                _node(inner, node, say)
        _tensors(inner, say)


def _foreign(node: NodeProto, say: Say) -> None:
    if node.domain.startswith("ai.onnx"):
        say("unsupported-operator", label(node), f"TensorRT has no {node.domain}.{node.op_type}")
    else:
        say("custom-domain", label(node), f"{node.domain}.{node.op_type} is no operator of ONNX")


def _inputs(view: View, say: Say) -> None:
    for name in view.inputs:
        if name in view.stored:
            continue
        if name in view.other:
            say("unsupported-type", name, f"input {name} is no tensor")
            continue
        shape = view.shape(name)
        if shape is None or -1 in shape:
            dims = "unknown rank" if shape is None else str(shape).replace("-1", "?")
            say("dynamic-shape", name, f"input {name} has the shape {dims}")


def _tensors(view: View, say: Say) -> None:
    """Types of all tensors of one graph."""
    names = dict.fromkeys((*view.inputs, *view.maker, *view.stored))
    wide: list[str] = []
    for name in names:
        kind, shape = view.dtype(name), view.shape(name)
        if shape and min(shape) > 0 and prod(shape) > MOST_ELEMENTS:
            say("too-large", name, f"{name} has the shape {shape}")
        if kind and kind not in _TYPES:
            say("unsupported-type", name, f"{name} is {type_name(kind)}")
        elif kind == _T.DOUBLE:
            wide.append(name)
        elif kind in _QUANTISED_ONLY:
            _narrow(view, name, kind, say)
        elif kind == _T.UINT8:
            _bytes(view, name, say)
    if wide:
        say("float64", wide[0], f"{len(wide)} tensors are float64, such as {wide[0]}")


def _narrow(view: View, name: str, kind: int, say: Say) -> None:
    """4- and 8-bit float types live between Q and DQ only."""
    outside = [n for n in view.readers.get(name, []) if n.op_type not in _QDQ]
    maker = view.maker.get(name)
    made = maker is not None and maker.op_type not in (*_QDQ, "Constant")
    if outside or made:
        at = label(outside[0]) if outside else name
        say("unsupported-type", at, f"{name} is {type_name(kind)} outside of Q and DQ")


def _bytes(view: View, name: str, say: Say) -> None:
    """uint8 comes in or goes out by a Cast, and is not computed with."""
    maker = view.maker.get(name)
    if maker is not None and maker.op_type not in (*_QDQ, "Cast", "Constant"):
        say("unsupported-type", label(maker), f"{maker.op_type} computes in uint8")
    elif maker is not None and maker.op_type == "Cast" and name not in view.outputs:
        say("unsupported-type", label(maker), f"{name} is uint8 inside the network")
    for reader in view.readers.get(name, []):
        if reader.op_type not in (*_QDQ, "Cast", "Equal"):
            say("unsupported-type", label(reader), f"{reader.op_type} reads uint8")


def _node(view: View, node: NodeProto, say: Say) -> None:
    operator = node.op_type
    for place in _CONSTANTS.get(operator, ()):
        name = node.input[place] if len(node.input) > place else ""
        if name and not _foldable(view, name):
            rule = "computed-parameter" if _from_input(view, name) else "derived-parameter"
            say(rule, label(node), f"input {place} of {operator} is not constant")
    for place in _SHAPES.get(operator, ()):
        name = node.input[place] if len(node.input) > place else ""
        source = name and _from_input(view, name)
        if source:
            say("shape-input", label(node), f"the shape of {operator} depends on input {source}")
    test = _OPTIONS.get(operator)
    complaint = test(view, node) if test is not None else None
    if complaint:
        say("unsupported-option", label(node), f"{operator}: {complaint}")


def _foldable(view: View, name: str, depth: int = 0) -> bool:
    """Whether a tensor follows from constants alone."""
    if view.is_constant(name):
        return True
    maker = view.maker.get(name)
    if maker is None or depth > 50:
        return False
    return bool(maker.input) and all(_foldable(view, n, depth + 1) for n in maker.input if n)


def _from_input(view: View, name: str) -> str:
    """The graph input whose values a tensor depends on; not where only its shape is read."""
    seen, todo = set(), [name]
    while todo:
        at = todo.pop()
        if at in seen or view.is_constant(at):
            continue
        seen.add(at)
        maker = view.maker.get(at)
        if maker is None:
            return at
        if maker.op_type not in ("Shape", "Size"):
            todo += [n for n in maker.input if n]
    return ""


def _dilated(view: View, node: NodeProto) -> str | None:
    if len([o for o in node.output if o]) > 1:
        return "more than one output"
    if any(d != 1 for d in attribute(node, "dilations", [])):
        return "dilations other than 1"
    if node.op_type == "LpPool" and attribute(node, "p", 2) not in (1, 2):
        return f"p = {attribute(node, 'p')}, 1 and 2 only"
    if view.dtype(node.input[0]) in (_T.INT8, _T.UINT8) and node.op_type == "AveragePool":
        return "integers"
    return None


def _training(_: View, node: NodeProto) -> str | None:
    return "training_mode = 1" if attribute(node, "training_mode", 0) else None


def _one_output(_: View, node: NodeProto) -> str | None:
    return "more than one output" if len([o for o in node.output if o]) > 1 else None


def _reduction(_: View, node: NodeProto) -> str | None:
    mode = attribute(node, "reduction", b"none")
    return None if mode == b"none" else f"reduction = {mode.decode()}"


def _modulo(view: View, node: NodeProto) -> str | None:
    whole = view.dtype(node.input[0]) in (_T.INT32, _T.INT64)
    return None if whole or attribute(node, "fmod", 0) else "fmod = 0 on floating point"


def _resize(_: View, node: NodeProto) -> str | None:
    mode = attribute(node, "coordinate_transformation_mode", b"half_pixel").decode()
    known = ("align_corners", "tf_half_pixel_for_nn", "asymmetric", "half_pixel",
             "pytorch_half_pixel")  # fmt: skip
    if mode not in known:
        return f"coordinate_transformation_mode = {mode}"
    if attribute(node, "antialias", 0):
        return "antialias"
    policy = attribute(node, "keep_aspect_ratio_policy", b"stretch").decode()
    return None if policy == "stretch" else f"keep_aspect_ratio_policy = {policy}"


def _celu(view: View, node: NodeProto) -> str | None:
    kind = view.dtype(node.input[0])
    return f"{type_name(kind)}, float32 only" if kind != _T.FLOAT else None


def _clip(view: View, node: NodeProto) -> str | None:
    return "int8" if view.dtype(node.input[0]) == _T.INT8 else None


def _product(view: View, node: NodeProto) -> str | None:
    first, second = (len(view.shape(n) or (0, 0)) for n in node.input)
    return "a vector by a batch of matrices" if first == 1 and second > 2 else None


def _random(view: View, node: NodeProto) -> str | None:
    return "float64" if view.dtype(node.output[0]) == _T.DOUBLE else None


def _quantise(view: View, node: NodeProto) -> str | None:
    steps = view.value(node.input[1]) if len(node.input) > 1 else None
    if steps is not None and np.ndim(steps) > 2:
        return f"scales of {np.ndim(steps)} dimensions"
    return None


_OPTIONS: dict[str, Callable[[View, NodeProto], str | None]] = {
    "AveragePool": _dilated, "MaxPool": _dilated, "LpPool": _dilated,
    "BatchNormalization": _training, "LayerNormalization": _one_output,
    "ScatterND": _reduction, "ScatterElements": _reduction, "Mod": _modulo, "Resize": _resize,
    "Celu": _celu, "Clip": _clip, "MatMul": _product, "RandomUniformLike": _random,
    "QuantizeLinear": _quantise, "DequantizeLinear": _quantise,
}  # fmt: skip
