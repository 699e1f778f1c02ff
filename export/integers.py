"""Reads back what ONNX Runtime makes of an int8 file on the CPU: which layers it computes in
integers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime
from onnx import NodeProto, TensorProto

from vcompress.bench.bundle.atomic import temporary_folder

from .graph import COMPUTE, Graph, attribute

_FLOAT = frozenset({*COMPUTE, *(f"Fused{name}" for name in COMPUTE)})
_IN_INTEGERS = frozenset(
    {"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
     "ConvInteger", "MatMulInteger"}
)  # fmt: skip
_BETWEEN = frozenset({"Relu", "Clip", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
"""Operators that ONNX Runtime looks through for the next rounding, or moves."""


@dataclass(frozen=True)
class Integers:
    """How many of the layers with int8 weights run in integers, and what keeps the others out."""

    meant: int
    """Layers with int8 weights in the file."""
    integer: int
    """Those of them that ONNX Runtime computes in integers."""
    float_layers: dict[str, str]
    """The others, with the operator that is to blame."""
    integer_operators: int
    """Convolutions and matrix products in integers, in the graph that runs."""
    float_operators: int
    """Those in floating point."""

    @property
    def text(self) -> str:
        """Such as "5 of 5 layers run in integers"."""
        return f"{self.integer} of {self.meant} layers run in integers"


def read_back(file: Path) -> Integers:
    """Let ONNX Runtime optimise a file for this machine's CPU, and look at the result."""
    meant = _layers(Graph(onnx.load(str(file))))
    with temporary_folder() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(folder / "optimised.onnx")
        options.log_severity_level = 3  # it warns that the written file is for this machine
        onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
        graph = Graph(onnx.load(options.optimized_model_filepath))
    blamed = {name: _blame(graph, node) for name, node in _layers(graph).items()}
    found = Counter(node.op_type for node in graph.nodes)
    return Integers(
        meant=len(meant),
        integer=len(meant) - len(blamed),
        float_layers=blamed,
        integer_operators=sum(found[name] for name in _IN_INTEGERS),
        float_operators=sum(found[name] for name in _FLOAT),
    )


def _layers(graph: Graph) -> dict[str, NodeProto]:
    """The convolutions and products that read int8 weights by a DequantizeLinear, by the weights'
    names and the places where one is read several times."""
    found: dict[str, NodeProto] = {}
    for node in graph.nodes:
        if node.op_type not in _FLOAT or len(node.input) < 2:
            continue
        before = graph.maker.get(node.input[1])
        while before is not None and before.op_type in ("Transpose", "Reshape"):
            before = graph.maker.get(before.input[0])
        if before is None or before.op_type != "DequantizeLinear":
            continue
        stored = graph.constants.get(before.input[0])
        if stored is not None and stored.data_type == TensorProto.INT8:
            name, number = _layer_name(stored.name), 1
            while name in found:
                number += 1
                name = f"{_layer_name(stored.name)} ({number})"
            found[name] = node
    return found


def _layer_name(weight: str) -> str:
    """The layer of a stored weight: `model.fc.quantised_weight.integers` is `fc`."""
    name = weight.removeprefix("model.")
    # `code__` is a layer `code`: that name is one that a graph has of its own
    for suffix in ("_t", ".integers", ".quantised_weight", "__"):
        name = name.removesuffix(suffix)
    return name


def _blame(graph: Graph, node: NodeProto) -> str:
    """What stands between a layer and its roundings."""
    if node.op_type.endswith("ConvTranspose"):
        return "ConvTranspose has no int8 kernel"
    before = graph.maker.get(node.input[0])
    while before is not None and before.op_type in _BETWEEN:
        before = graph.maker.get(before.input[0])
    if before is None or before.op_type != "DequantizeLinear":
        return f"{'the input' if before is None else before.op_type} stands before it"
    joined = attribute(node, "activation", b"Relu")
    if isinstance(joined, bytes) and joined not in (b"Relu", b"Clip"):
        return f"{joined.decode()} behind it reads floats"
    readers = graph.readers.get(node.output[0], [])
    while len(readers) == 1 and readers[0].op_type in _BETWEEN:
        readers = graph.readers.get(readers[0].output[0], [])
    others = sorted({r.op_type for r in readers} - {"QuantizeLinear"})
    if others or not readers:
        return f"{' and '.join(others) or 'the output'} behind it reads floats"
    return "ONNX Runtime has no kernel for it as it is quantised"
