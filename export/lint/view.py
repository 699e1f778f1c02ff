"""A graph as the rules read it: makers and readers, types and shapes, constants."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ..graph import Array, attribute

QUANTISE, DEQUANTISE = "QuantizeLinear", "DequantizeLinear"


class BadTensor(Exception):
    """With the reason, as a sentence."""


class View:
    """One graph, and those inside its nodes; names of an outer graph are seen within."""

    def __init__(self, graph: onnx.GraphProto, folder: Path, outer: View | None = None) -> None:
        self.graph, self.folder, self.outer = graph, folder, outer
        self.nodes = list(graph.node)
        # A foreign operator may be called Conv and have one input.
        self.standard = [n for n in self.nodes if n.domain in ("", "ai.onnx")]
        self.inputs = [i.name for i in graph.input]
        self.outputs = {o.name for o in graph.output}
        self.stored = {t.name: t for t in graph.initializer}
        for node in self.nodes:
            tensor = attribute(node, "value")
            if node.op_type == "Constant" and isinstance(tensor, TensorProto):
                self.stored[node.output[0]] = tensor
        self.maker = {o: n for n in self.nodes for o in n.output if o}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.types = {
            v.name: v.type.tensor_type
            for v in (*graph.value_info, *graph.output, *graph.input)
            if v.type.WhichOneof("value") == "tensor_type"
        }
        self.other = {
            v.name
            for v in (*graph.value_info, *graph.output, *graph.input)
            if v.type.WhichOneof("value") not in ("tensor_type", None)
        }
        """Sequences, maps, optional values."""

    def inner(self) -> Iterator[View]:
        """The graphs in the attributes of this graph's nodes, not theirs."""
        for node in self.nodes:
            for found in node.attribute:
                graphs = [found.g] if found.type == onnx.AttributeProto.GRAPH else found.graphs
                for graph in graphs:
                    yield View(graph, self.folder, self)

    def all(self) -> Iterator[View]:
        """This graph and all within it."""
        yield self
        for view in self.inner():
            yield from view.all()

    def is_constant(self, name: str) -> bool:
        """Whether a tensor's values stand in the file."""
        if name in self.stored:
            return True
        if name in self.maker or name in self.inputs or self.outer is None:
            return name in self.maker and self.maker[name].op_type == "Constant"
        return self.outer.is_constant(name)

    def tensor(self, name: str) -> TensorProto | None:
        """The stored tensor of a constant."""
        found = self.stored.get(name)
        if found is None and self.outer is not None and name not in self.maker:
            return self.outer.tensor(name)
        return found

    def value(self, name: str) -> Array | None:
        """The values of a constant; None for a computed tensor. External data is read.

        Raises:
            BadTensor: its values do not fill its shape.
        """
        found = self.tensor(name)
        if found is None:
            return None
        try:
            return np.asarray(numpy_helper.to_array(found, str(self.folder)))
        except Exception as error:  # onnx and NumPy raise many kinds on a damaged tensor
            raise BadTensor(f"the tensor {name!r} cannot be read: {error}") from None

    def dtype(self, name: str) -> int:
        """The type of a tensor, 0 where it is not known."""
        found = self.tensor(name)
        if found is not None:
            return int(found.data_type)
        info = self.types.get(name)
        if info is not None:
            return int(info.elem_type)
        return self.outer.dtype(name) if self.outer is not None else 0

    def shape(self, name: str) -> list[int] | None:
        """The shape of a tensor, -1 for an open size; None where not even the rank is known."""
        found = self.tensor(name)
        if found is not None:
            return list(found.dims)
        info = self.types.get(name)
        if info is None:
            return self.outer.shape(name) if self.outer is not None else None
        if not info.HasField("shape"):
            return None
        return [d.dim_value if d.HasField("dim_value") else -1 for d in info.shape.dim]

    def read_by(self, name: str, *operators: str) -> list[onnx.NodeProto]:
        """The readers of a tensor that are one of `operators`."""
        return [n for n in self.readers.get(name, []) if n.op_type in operators]


def label(node: onnx.NodeProto) -> str:
    """What to call a node: its name, or the tensor that it makes."""
    return str(node.name or next((o for o in node.output if o), node.op_type))


def type_name(kind: int) -> str:
    """Such as float16."""
    names = {v: k for k, v in TensorProto.DataType.items()}
    return str(names.get(kind, f"type {kind}")).lower()


_MOVES = frozenset(
    {
        "Transpose", "Reshape", "Identity", "Flatten", "Squeeze", "Unsqueeze", "Cast", "MaxPool",
        "DepthToSpace", "Slice", "Split",
    }
)  # fmt: skip
"""Operators that pass values on, so that a rounding before them is one behind them."""


def dequantiser(view: View, name: str) -> tuple[onnx.NodeProto, int | None] | None:
    """The DequantizeLinear that a tensor comes from, moved at most, and the axis of its scales
    as the reader sees it: None where there is one scale only, or where a Reshape hides it."""
    path: list[onnx.NodeProto] = []
    node = view.maker.get(name)
    while node is not None and node.op_type in _MOVES and len(path) < 8:
        path.append(node)
        node = view.maker.get(node.input[0])
    if node is None or node.op_type != DEQUANTISE:
        return None
    steps, rank = view.shape(node.input[1]), view.shape(node.input[0])
    if not steps or not rank or steps == [1] or attribute(node, "block_size", 0):
        return node, None
    axis = int(attribute(node, "axis", 1)) % len(rank)
    for mover in reversed(path):
        if mover.op_type == "Transpose":
            order = attribute(mover, "perm", list(range(len(rank)))[::-1])
            axis = list(order).index(axis)
        elif mover.op_type not in ("Identity", "Cast"):
            return node, None
    return node, axis
