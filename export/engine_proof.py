"""Proves that a file's quantised nodes run quantised: its graph against the engine's layers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from vcompress.bench.engine import LayerReport

from .graph import COMPUTE, Graph

MOVES = (
    "Concat", "Expand", "Flatten", "Identity", "MaxPool", "Pad", "Reshape", "Slice", "Split",
    "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
"""Operators that only move values: rounding commutes with them."""


@dataclass(frozen=True)
class Proof:
    """What the engine made of the nodes that the file quantises."""

    quantised: tuple[str, ...]
    """Convolutions and matrix products with Q/DQ on both operands, by name."""
    plain: tuple[str, ...]
    """Those that the file leaves in floating point."""
    missed: tuple[tuple[str, str], ...]
    """Quantised nodes that the engine does not run on low-precision operands, and what it does."""
    expanded: tuple[str, ...]
    """ONNX nodes whose weights are expanded each time the engine runs."""

    @property
    def ok(self) -> bool:
        return not self.missed and not self.expanded

    @property
    def low(self) -> int:
        """Quantised nodes that run on low-precision operands."""
        return len(self.quantised) - len(self.missed)

    def to_json(self) -> dict[str, Any]:
        """JSON's own types."""
        return {
            "quantised_nodes": len(self.quantised),
            "low_precision_nodes": self.low,
            "plain_nodes": list(self.plain),
            "missed": [list(pair) for pair in self.missed],
            "expanded": list(self.expanded),
        }


def quantised_nodes(proto: onnx.ModelProto) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Convolutions and matrix products that are quantised, and those that are not, by name."""
    graph = Graph(proto)
    found: tuple[list[str], list[str]] = ([], [])
    for node in graph.nodes:
        if node.op_type in COMPUTE:
            whole = all(_dequantised(graph, name) for name in node.input[:2])
            found[0 if whole else 1].append(node.name or node.output[0])
    return tuple(found[0]), tuple(found[1])


def _dequantised(graph: Graph, name: str) -> bool:
    maker = graph.maker.get(name)
    while maker is not None and maker.op_type in MOVES:
        maker = graph.maker.get(maker.input[0])
    return maker is not None and maker.op_type == "DequantizeLinear"


def prove(onnx_path: Path, layers: LayerReport) -> Proof:
    """Hold the layers of an engine against the graph that it was built from."""
    quantised, plain = quantised_nodes(onnx.load(str(onnx_path), load_external_data=False))
    missed = []
    for name in quantised:
        became = layers.of(name)
        wide = [layer for layer in became if not layer.low]
        if not became:
            missed.append((name, "no layer of the engine names it"))
        elif wide:
            kind = wide[0]
            missed.append((name, f"{kind.kind} on {kind.precision}"))
    expanded = [layer.onnx[0] if layer.onnx else layer.name for layer in layers.expanded]
    return Proof(quantised, plain, tuple(missed), tuple(expanded))
