"""The rules: one table, from which the findings, the page in docs/ and the tests are made."""

from __future__ import annotations

from .findings import Effect, Rule, Severity

_BOTH = ("tensorrt", "onnxruntime")


def _rule(
    name: str, severity: Severity, effect: Effect, what: str, cure: str,
    targets: tuple[str, ...] = ("tensorrt",),
) -> Rule:  # fmt: skip
    return Rule(name, severity, effect, targets, what, cure)


_ALL = (
    # The file.
    _rule("unreadable", "error", "blocks",
          "the bytes are not a whole ONNX file, or its graphs are nested without end",
          "export or copy the file again", _BOTH),
    _rule("external-data", "error", "blocks",
          "a tensor lies in a file outside the model's folder, or in one that is missing",
          "put the data file beside the model; never open a model that names other files", _BOTH),
    _rule("invalid", "error", "blocks",
          "the ONNX checker or strict shape inference refuses the file: an undefined tensor, a "
          "cycle, two makers of one tensor, shapes or channels that do not fit, no such operator",
          "correct the graph where the message says; other runtimes refuse it too", _BOTH),
    _rule("checker-failed", "error", "unknown",
          "the ONNX checker itself crashed, or did not end",
          "the file is malformed or hostile: do not open it in a runtime", _BOTH),
    _rule("channels", "error", "blocks",
          "the channels of a weight are not those of what it reads; the checker and shape "
          "inference of ONNX do not see it", "prune or edit both sides alike, and export again",
          _BOTH),
    _rule("bad-weight", "error", "unknown",
          "a weight holds NaN or infinity: it builds, and every result is NaN",
          "train or convert the network again", _BOTH),
    _rule("opset", "warning", "unknown",
          "an opset older or newer than any that was built",
          "convert the file: onnx.version_converter, or export with opset 17 to 22"),
    _rule("custom-domain", "warning", "unknown",
          "an operator that ONNX does not define: it needs a plugin, or the runtime that made it",
          "export without contributed operators; for ONNX Runtime's own files save the graph "
          "before its optimiser", _BOTH),
    _rule("unknown-operator", "warning", "unknown",
          "an operator of ONNX that was never seen to build",
          "try --build; else write it with other operators"),
    _rule("unsupported-operator", "error", "blocks",
          "TensorRT has no such operator, or asks for a plugin that it does not ship; the "
          "parser's supports_operator may still say yes",
          "leave it out of the engine (decode and suppress outside), or write it with others"),
    _rule("unsupported-option", "error", "blocks",
          "TensorRT has the operator, and not with this option",
          "export the operator without the option"),
    _rule("computed-parameter", "error", "blocks",
          "a parameter that must be a constant (axes, ratio, mode) is computed or is an input",
          "make it an initialiser: constant folding at export, or onnxsim / onnxslim"),
    _rule("derived-parameter", "warning", "unknown",
          "a parameter that must be a constant is computed from shapes",
          "constant folding at export, with fixed sizes, or onnxsim / onnxslim"),
    _rule("unsupported-type", "error", "blocks",
          "a data type that TensorRT does not have, or not there",
          "cast to float32, float16, int32 or int64 at export"),
    _rule("float64", "warning", "builds",
          "float64 is computed in float32: the parser narrows it without asking",
          "export in float32 to see what will run", ("tensorrt",)),
    _rule("too-large", "error", "blocks",
          "a tensor of more than 2^40 elements",
          "such a shape is a mistake, or the file is hostile"),
    _rule("dynamic-shape", "note", "builds",
          "an input whose shape is open: the build needs an optimisation profile",
          "give the least, usual and largest shape when building"),
    _rule("shape-input", "warning", "unknown",
          "an input decides about shapes: the build needs a profile of its values",
          "make it a constant where it never changes"),
    _rule("control-flow", "warning", "unknown",
          "Loop, If or Scan: it may build, and stops fusion and CUDA graphs",
          "unroll it at export"),
    # Quantisation: what is refused or changed.
    _rule("zero-point", "error", "blocks",
          "a zero point that is not 0: TensorRT takes symmetric quantisation only",
          "quantise symmetrically: `vcompress quantize --target tensorrt`"),
    _rule("uint8", "error", "unknown",
          "uint8 activations: TensorRT reads them as int8 and clips all above 127 in silence",
          "quantise to int8 with a zero point of 0: `vcompress quantize --target tensorrt`"),
    _rule("uint8-weight", "error", "blocks",
          "a DequantizeLinear of stored uint8: refused",
          "store weights as int8 with a zero point of 0"),
    _rule("bad-scale", "error", "blocks",
          "a scale that is zero, negative or NaN (in float16 all below 6e-8 is zero)",
          "calibrate again; give a dead tensor or channel a small positive scale"),
    _rule("infinite-scale", "error", "unknown",
          "a scale of infinity: it builds, and every result is NaN",
          "calibrate again, in float32"),
    _rule("subnormal-scale", "warning", "builds",
          "a float16 scale so small that it has lost digits",
          "clamp scales at 6.1e-5 in float16, or keep this layer in floating point"),
    _rule("computed-scale", "error", "blocks",
          "a scale or zero point that is computed or an input: it can crash the builder",
          "store scales and zero points as initialisers"),
    _rule("scale-shape", "error", "blocks",
          "the number of scales is not the size of the axis, or the axis does not exist",
          "one scale for the tensor, or one for each slice along `axis`", _BOTH),
    _rule("scale-type", "warning", "builds",
          "scales of another type than the tensors around them: a mixed graph, held together by "
          "casts", "give scales the graph's type (float16 scales need opset 19): convert the whole "
          "quantised graph at once"),
    _rule("quantised-type", "error", "blocks",
          "a type that TensorRT does not quantise to, or not here (16 bits, 4-bit activations, "
          "the wide 8-bit float)",
          "int8, float8e4m3fn, or int4 weights in blocks"),
    _rule("mixed-quantised", "error", "blocks",
          "the two inputs of a product are quantised to different types",
          "quantise both to int8, or both to float8e4m3fn"),
    _rule("int32-bias", "error", "blocks",
          "a bias stored as int32 behind a DequantizeLinear: refused",
          "leave biases in floating point (onnxruntime: extra_options={'QuantizeBias': False})"),
    _rule("needs-sm89", "note", "builds",
          "8-bit floating point: GPUs of SM 89 (Ada) and later only",
          "for older GPUs quantise to int8"),
    _rule("int4-even", "error", "blocks",
          "an int4 tensor with an odd number of elements",
          "pad the weight, or leave it in 8 bits"),
    # Quantisation: what builds and costs.
    _rule("quantised-bias", "warning", "builds",
          "a bias behind a DequantizeLinear: it is added apart and gains nothing",
          "leave biases in floating point"),
    _rule("wrong-axis", "warning", "builds",
          "scales along another axis than the output channels (Conv 0, ConvTranspose 1, Gemm 1, "
          "with transB 0, MatMul the last): the weight is expanded to floating point at run time",
          "quantise the weight along its output channels"),
    _rule("half-quantised", "warning", "builds",
          "only one of the two inputs is quantised: the product runs in floating point",
          "quantise input and weight, or neither"),
    _rule("per-tensor-weight", "note", "builds",
          "one scale for the whole weight of a convolution: costs accuracy and no time is won",
          "quantise weights per output channel", _BOTH),
    _rule("per-channel-activation", "warning", "builds",
          "an activation with a scale for each channel: the product behind it runs in floating "
          "point", "one scale for each activation"),
    _rule("float-weight-copy", "warning", "builds",
          "the weight is stored in floating point in front of its QuantizeLinear: the file is "
          "four times as large", "store integers and keep the DequantizeLinear alone", _BOTH),
    _rule("split-fusion", "warning", "builds",
          "Q/DQ between a convolution, its batch norm and its ReLU: they no longer run as one",
          "quantise behind the ReLU"),
    _rule("both-branches", "warning", "builds",
          "both branches of a residual addition are quantised: the addition no longer fuses with "
          "the convolution", "quantise the shortcut only"),
    _rule("concat-scales", "warning", "builds",
          "inputs of a Concat with different scales: each is rounded again",
          "one scale for all inputs and the output"),
    _rule("quantised-inside", "warning", "builds",
          "Q/DQ in front of a Softmax, a norm, a GELU or a gate: the fused kernel is cut apart "
          "and loses accuracy", "quantise only what a convolution or a product reads"),
    _rule("odd-channels", "note", "builds",
          "an int8 convolution whose channels are no multiple of 8 (or grouped, with a kernel "
          "below 3): the int8 kernel pads or is slow", "leave it in floating point, or measure"),
    _rule("small-matmul", "note", "builds",
          "an int8 product with one row or column, or fewer than 16 of them: nothing is won",
          "leave it in floating point"),
    _rule("lone-quantise", "warning", "builds",
          "a Q whose integers are read by something else than a DQ, or a DQ of integers that no Q "
          "made", "keep Q and DQ in pairs; integers in and out belong outside the network"),
    _rule("scale-mismatch", "warning", "builds",
          "Q and DQ of a pair have different scales: the values change",
          "use the same initialisers in both"),
    # ONNX Runtime on the CPU.
    _rule("not-fused", "warning", "builds",
          "the node stands between DQ and no Q (or Q and no DQ): ONNX Runtime computes it in "
          "floating point", "quantise its output too: `vcompress quantize --target onnxruntime`",
          ("onnxruntime",)),
    _rule("relu-zero-point", "warning", "builds",
          "the rounding behind a ReLU does not begin at zero: the ReLU stays and the operator "
          "before it does not fuse", "uint8 with a zero point of 0 behind a ReLU",
          ("onnxruntime",)),
    _rule("signed-activations", "warning", "builds",
          "int8 activations: on x86 most int8 kernels want uint8, and this runs in floating point "
          "or slowly", "uint8 activations", ("onnxruntime",)),
    _rule("saturation", "note", "builds",
          "uint8 activations with 8-bit weights: on x86 without VNNI sums saturate in 16 bits, and "
          "the accuracy differs from machine to machine",
          "7-bit weights (--weight-bits 7, reduce_range) for such machines", ("onnxruntime",)),
    _rule("runs-in-float", "note", "builds",
          "a convolution or product that is not quantised",
          "quantise it, unless it was left out on purpose", _BOTH),
    _rule("no-kernel", "error", "blocks",
          "ONNX Runtime does not load the file", "see its message", ("onnxruntime",)),
    # What a build adds.
    _rule("build-failed", "error", "blocks",
          "the builder refused the file here, though no rule said so",
          "see its message; please report the file"),
)  # fmt: skip

RULES: dict[str, Rule] = {rule.id: rule for rule in _ALL}
