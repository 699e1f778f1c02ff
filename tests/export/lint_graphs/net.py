"""The labelled set of `vcompress lint`: small ONNX graphs, good and broken, made by code.

Each has the verdict that is expected for TensorRT and the rule that should speak, and says why.
`tests/benchmarks/lint_against_builds.py` builds every one with TensorRT-RTX.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, HALF, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
INT8, UINT8, INT4, FP8 = (
    TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.FLOAT8E4M3FN,
)  # fmt: skip
NUMPY: dict[int, Any] = {
    FLOAT: np.float32, HALF: np.float16, BF16: ml_dtypes.bfloat16, INT8: np.int8, UINT8: np.uint8,
    TensorProto.INT16: np.int16, TensorProto.INT32: np.int32, INT4: ml_dtypes.int4,
    FP8: ml_dtypes.float8_e4m3fn,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A graph with what lint should say of it."""

    name: str
    verdict: str
    """blocked, unverified or likely."""
    rule: str | None
    """The finding that must be there; None: no error and no warning at all."""
    why: str
    make: Callable[[], onnx.ModelProto]


class Net:
    """Builds a graph node by node; every method returns the name of the tensor it makes."""

    def __init__(
        self, shape: tuple[int | str, ...] = (1, 16, 32, 32), dtype: int = FLOAT, opset: int = 21
    ) -> None:
        self.dtype, self.opset = dtype, opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs = [helper.make_tensor_value_info("x", dtype, shape)]
        self.rng = np.random.default_rng(0)
        self.count = 0
        self.functions: list[onnx.FunctionProto] = []
        self.domains: dict[str, int] = {}

    def name(self, hint: str) -> str:
        self.count += 1
        return f"{hint.lower()}_{self.count}"

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        name = self.name(op)
        names = [name] if outputs == 1 else [f"{name}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=f"n_{name}", **attributes))
        return names[0]

    def const(self, values: Any, hint: str = "c") -> str:
        name = self.name(hint)
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def number(self, *values: float) -> str:
        return self.const(np.array(values[0] if len(values) == 1 else values, NUMPY[self.dtype]))

    def random(self, *shape: int) -> str:
        values = self.rng.normal(0, 0.2, shape).astype(np.float32)
        return self.const(values.astype(NUMPY[self.dtype]), "w")

    def scale_and_zero(self, scale: Any, kind: int, zero: Any, scale_type: int | None) -> list[str]:
        steps = np.asarray(scale, np.float32).astype(NUMPY[scale_type or self.dtype])
        zeros = np.full(steps.shape, zero, np.float32).astype(NUMPY[kind])
        return [self.const(steps, "scale"), self.const(zeros, "zero")]

    def qdq(
        self, x: str, scale: Any = 0.05, *, kind: int = INT8, zero: Any = 0,
        scale_type: int | None = None, **attributes: Any,
    ) -> str:  # fmt: skip
        both = self.scale_and_zero(scale, kind, zero, scale_type)
        q = self.add("QuantizeLinear", x, *both, **attributes)
        return self.add("DequantizeLinear", q, *both, **attributes)

    def weight(
        self, *shape: int, axis: int | None = 0, scale: Any = 0.01, kind: int = INT8,
        zero: Any = 0, steps: int | None = None, scale_type: int | None = None, **attributes: Any,
    ) -> str:  # fmt: skip
        integers = self.rng.integers(-7, 8, shape).astype(np.float32)
        values = np.abs(integers) if kind == UINT8 else integers
        stored = self.const(values.astype(NUMPY[kind]), "w_int")
        if axis is None:
            both = self.scale_and_zero(scale, kind, zero, scale_type)
            return self.add("DequantizeLinear", stored, *both, **attributes)
        many = np.full(steps or shape[axis], scale, np.float32)
        both = self.scale_and_zero(many, kind, zero, scale_type)
        return self.add("DequantizeLinear", stored, *both, axis=axis, **attributes)

    def conv(
        self, x: str, into: int = 16, out: int = 16, kernel: int = 3, *, groups: int = 1,
        weight: str | None = None, quantise: bool = True, bias: str | None = None,
        **attributes: Any,
    ) -> str:  # fmt: skip
        shape = (out, into // groups, kernel, kernel)
        if quantise:
            x = self.qdq(x)
            weight = weight or self.weight(*shape)
        weight = weight or self.random(*shape)
        pad = attributes.pop("pads", [kernel // 2] * 4)
        inputs = [x, weight] + ([bias] if bias else [])
        return self.add("Conv", *inputs, group=groups, pads=pad, **attributes)

    def done(
        self, *outputs: str, kinds: dict[str, int] | None = None, **options: Any
    ) -> onnx.ModelProto:
        kinds = kinds or {}
        shape = options.pop("shape", None)
        values = [
            helper.make_tensor_value_info(o, kinds.get(o, self.dtype), shape) for o in outputs
        ]
        graph = helper.make_graph(self.nodes, "g", self.inputs, values, self.constants)
        imports = [helper.make_opsetid("", self.opset)]
        imports += [helper.make_opsetid(d, v) for d, v in self.domains.items()]
        model = helper.make_model(
            graph, opset_imports=imports, ir_version=10, functions=self.functions, **options
        )
        _fill_output_shapes(model)
        return model


def _fill_output_shapes(model: onnx.ModelProto) -> None:
    """The checker wants the shapes of outputs declared; take those that follow from the graph."""
    constants = {t.name: t.dims for t in model.graph.initializer}
    inputs = {i.name: i.type.tensor_type.shape for i in model.graph.input}
    with contextlib.suppress(Exception):  # broken graphs are made on purpose
        inferred = onnx.shape_inference.infer_shapes(model)
        for declared, found in zip(model.graph.output, inferred.graph.output, strict=True):
            shape = declared.type.tensor_type.shape
            if declared.name in inputs:
                shape.CopyFrom(inputs[declared.name])
            elif declared.name in constants:
                for size in constants[declared.name]:
                    shape.dim.add(dim_value=size)
            else:
                shape.CopyFrom(found.type.tensor_type.shape)
    for declared in model.graph.output:
        if not declared.type.tensor_type.HasField("shape"):
            declared.type.tensor_type.shape.SetInParent()
            declared.type.tensor_type.shape.dim.add(dim_param="unknown")


CASES: list[Case] = []
Maker = Callable[[], onnx.ModelProto]


def case(verdict: str, rule: str | None, why: str) -> Callable[[Maker], Maker]:
    """Enter a graph into the set under the name of its function."""

    def enter(make: Maker) -> Maker:
        CASES.append(Case(make.__name__, verdict, rule, why, make))
        return make

    return enter
