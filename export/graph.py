"""An ONNX graph to read and rewrite: makers, readers and constants by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from vcompress.bench.bundle.atomic import staged_file

Array = npt.NDArray[Any]
COMPUTE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operators that multiply by weights."""


class Graph:
    """An index over a graph that is rewritten: makers and readers of tensors, constants."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.graph = proto.graph
        self.constants = {t.name: t for t in self.graph.initializer}
        self.nodes = list(self.graph.node)
        self.outputs = {o.name for o in self.graph.output}
        self.index()

    def index(self) -> None:
        """Look at the nodes again after a change."""
        self.maker = {o: n for n in self.nodes for o in n.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def value(self, name: str) -> Array | None:
        """The values of a constant; None for a computed tensor."""
        found = self.constants.get(name)
        return None if found is None else numpy_helper.to_array(found)

    def store(self, name: str, values: Array) -> str:
        """Add or replace a constant."""
        self.constants[name] = numpy_helper.from_array(np.asarray(values, order="C"), name)
        return name

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        """The node that reads a tensor, where it is one only and the tensor is no output."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def drop(self, node: onnx.NodeProto) -> None:
        """Remove a node; whoever needs its output was changed before."""
        self.nodes = [n for n in self.nodes if n is not node]

    def redirect(self, old: str, new: str) -> None:
        """Let every reader of `old` read `new`."""
        for node in self.readers.get(old, []):
            for place, name in enumerate(node.input):
                if name == old:
                    node.input[place] = new
        self.index()

    def write_back(self) -> None:
        """Put nodes and the constants that are still read into the graph."""
        read = {name for node in self.nodes for name in node.input} | self.outputs
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        del self.graph.initializer[:]
        self.graph.initializer.extend(t for n, t in self.constants.items() if n in read)
        written = {o for node in self.nodes for o in node.output}
        kept = [v for v in self.graph.value_info if v.name in written]
        del self.graph.value_info[:]
        self.graph.value_info.extend(kept)


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of an attribute."""
    for found in node.attribute:
        if found.name == name:
            return helper.get_attribute_value(found)
    return default


def opset_of(proto: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a file asks for; 0 where it names none."""
    return next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)


def per_axis(values: Array, rank: int, axis: int) -> Array:
    """Values along `axis` of a tensor of `rank` dimensions, in the shape that goes with it; a
    scalar stays one."""
    if values.ndim == 0:
        return values
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def save(proto: onnx.ModelProto, path: Path) -> None:
    """Write a file whole or not at all."""
    with staged_file(path) as stream:
        stream.write(proto.SerializeToString())
