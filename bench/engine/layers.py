"""Types of an engine's layers, read from the message "Layers:" of TensorRT-RTX's builder.

With detailed profiling verbosity and a logger that takes VERBOSE, the builder logs one message: a
line a layer, with its type, the types of its inputs, constants and outputs, and the names of the
ONNX nodes in it. So a machine with no GPU can say what runs in int8. NVIDIA does not promise the
format, so it is read strictly, and a stored sample of each version is in the tests.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import UserError

KNOWN_VERSIONS = ("1.7",)
"""Versions of TensorRT-RTX whose message this parser was held against."""
HEADER = "Layers:\n"
COMPUTE = frozenset({"correlation", "deconv", "gemm", "runtime_fusion"})
"""Convolution, transposed convolution, matrix product, and one of these fused at run time."""
ATTENTION = "_gemm_mha"
"""How the name of a kernel begins that does a whole attention; its kind is kgen."""
LOW = frozenset({"Int4", "Int8", "FP8", "FP4"})

_LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], "
    r"Constants: \[(?P<constants>.*?)\], Outputs: \[(?P<outputs>.*?)\], TacticName: .*?, "
    r"StreamId: \d+(?:, \w+: \d+)*, Metadata: (?P<onnx>.*)$"
)
_TENSOR = re.compile(
    r"\{ Name: .*?, Dimensions: \[(?P<dims>[-\d,]*)\].*?, Datatype: (?P<type>\w+),"
)
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\x1f?\[ONNX Layer: |\x1f?$)")


class LayersUnreadable(UserError):
    """The message is not as this parser knows it."""


@dataclass(frozen=True)
class Layer:
    """One layer of the engine."""

    name: str
    kind: str
    """TensorRT's own word: correlation is a convolution, kgen a fused chain of small operators."""
    inputs: tuple[str, ...]
    """Their types, such as Int8, Half, Float."""
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    onnx: tuple[str, ...]
    """Names of the ONNX nodes in it; more than one where they were fused."""
    constant_elements: tuple[int, ...] = ()
    """How many numbers each constant has."""

    @property
    def compute(self) -> bool:
        """A convolution, a matrix product, or both products of an attention."""
        return self.kind in COMPUTE or self.attention

    @property
    def attention(self) -> bool:
        """Both matrix products and the softmax of an attention in one kernel."""
        return self.name.startswith(ATTENTION)

    @property
    def precision(self) -> str:
        """Type of the operands: both of them, else the wider one. Empty where nothing is read."""
        operands = self._operands()
        if not operands:
            return ""
        wide = [t for t in operands if t not in LOW]
        return wide[0] if wide else operands[0]

    @property
    def low(self) -> bool:
        """A convolution or matrix product on two operands of 8 bits or fewer."""
        operands = self._operands()
        return self.compute and len(operands) >= 2 and all(t in LOW for t in operands)

    @property
    def expands(self) -> bool:
        """It makes floating point of a stored low-precision weight each time the engine runs."""
        wide = any(t not in LOW for t in self.outputs)
        held = any(
            t in LOW and n > 1 for t, n in zip(self.constants, self.constant_elements, strict=True)
        )
        return not self.compute and held and wide

    def _operands(self) -> tuple[str, ...]:
        """An input with a weight, or two inputs where both sides are computed."""
        if not self.inputs:
            return ()
        if self.attention:  # query, key and value
            return self.inputs[:3]
        weights = [t for t, n in zip(self.constants, self.constant_elements, strict=True) if n > 1]
        if self.kind == "gemm" and len(self.inputs) > 1 and not (weights and weights[0] in LOW):
            return self.inputs[:2]
        return (self.inputs[0], *(weights[:1] or self.inputs[1:2]))


@dataclass(frozen=True)
class LayerReport:
    """The layers of an engine, in the order in which they run."""

    source: str
    """Who said so: the library and its version."""
    layers: tuple[Layer, ...]

    @property
    def compute(self) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.compute)

    @property
    def low(self) -> tuple[Layer, ...]:
        """Convolutions and matrix products on int8 (or FP8) operands."""
        return tuple(layer for layer in self.layers if layer.low)

    @property
    def expanded(self) -> tuple[Layer, ...]:
        """Layers that only expand a stored weight at run time."""
        return tuple(layer for layer in self.layers if layer.expands)

    @property
    def by_precision(self) -> dict[str, int]:
        """Convolutions and matrix products by the type of their operands."""
        return dict(Counter(layer.precision for layer in self.compute).most_common())

    def of(self, node: str) -> tuple[Layer, ...]:
        """The convolutions and matrix products that an ONNX node became."""
        return tuple(layer for layer in self.compute if node in layer.onnx)

    def to_json(self) -> dict[str, Any]:
        """JSON's own types; the numbers first, for whoever opens the file."""
        return {
            "source": self.source,
            "compute_layers": len(self.compute),
            "low_precision_layers": len(self.low),
            "by_precision": self.by_precision,
            "expanded_at_run_time": [layer.name for layer in self.expanded],
            "layers": [asdict(layer) for layer in self.layers],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LayerReport:
        """What `to_json` gave.

        Raises:
            UserError: it is something else.
        """
        from ..config import from_mapping

        body = {key: data.get(key) for key in ("source", "layers")}
        return from_mapping(cls, body, "layer report")


def parse(message: str, version: str) -> LayerReport:
    """Read the builder's message "Layers:".

    Raises:
        LayersUnreadable: the version or a line is not known; nothing is guessed.
    """
    if not version.startswith(tuple(f"{known}." for known in KNOWN_VERSIONS)):
        raise LayersUnreadable(
            f"the layers of TensorRT-RTX {version} are not read: their format is known of "
            f"{', '.join(KNOWN_VERSIONS)}."
        )
    if not message.startswith(HEADER):
        raise LayersUnreadable("the builder's message does not begin with 'Layers:'.")
    found = []
    for line in message.removeprefix(HEADER).split("\n"):
        if not line.strip():  # the input and output tensors follow
            break
        match = _LINE.match(line)
        if match is None:
            raise LayersUnreadable(f"a layer of TensorRT-RTX {version} is not read: {line[:120]!r}")
        found.append(_layer(match))
    if not found:
        raise LayersUnreadable("the builder names no layers.")
    return LayerReport(f"build log of TensorRT-RTX {version}", tuple(found))


def _layer(match: re.Match[str]) -> Layer:
    tensors = {}
    for part in ("inputs", "constants", "outputs"):
        text = match[part]
        tensors[part] = [(m["type"], _elements(m["dims"])) for m in _TENSOR.finditer(text)]
        if len(tensors[part]) != text.count("{ Name: "):
            raise LayersUnreadable(f"a tensor of {match['name']} is not read: {text[:120]!r}")
    return Layer(
        name=match["name"],
        kind=match["kind"],
        inputs=tuple(t for t, _ in tensors["inputs"]),
        constants=tuple(t for t, _ in tensors["constants"]),
        outputs=tuple(t for t, _ in tensors["outputs"]),
        onnx=tuple(_NODE.findall(match["onnx"])),
        constant_elements=tuple(n for _, n in tensors["constants"]),
    )


def _elements(dims: str) -> int:
    product = 1
    for size in filter(None, dims.split(",")):
        product *= int(size)
    return product
