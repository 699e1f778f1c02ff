"""What runtimes overlook in a file and the ONNX checker does not: put right, with a finding each.

Runtimes infer types and shapes themselves and read declared ones as hints at most. A file whose
hints are wrong runs and builds; the checker alone refuses it.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import helper

Found = tuple[str, str, str]
"""Rule, node and message."""
_OPTIONAL_IMPORTS = {"com.microsoft": 1, "ai.onnx.ml": 3}
"""Domains that runtimes know without an import, and the version they take."""


def repaired(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[Found, ...]]:
    """A copy without declared shapes of results and with its imports whole, and what was wrong.

    Tensors in other files become inputs of their type and shape, so that no file is opened.
    """
    copy, found = onnx.ModelProto(), list[Found]()
    copy.CopyFrom(model)
    imported = {i.domain for i in copy.opset_import}
    for domain in sorted(_domains(copy.graph.node) - imported):
        if domain in _OPTIONAL_IMPORTS:
            copy.opset_import.append(helper.make_opsetid(domain, _OPTIONAL_IMPORTS[domain]))
            found.append(("missing-import", "", f"{domain} is used and not imported"))
    _without_data(copy.graph)
    del copy.graph.value_info[:]
    declared = {o.name: o.type.tensor_type for o in model.graph.output if _is_tensor(o)}
    for output in copy.graph.output:
        if _is_tensor(output):
            output.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(copy, strict_mode=False, data_prop=True)
    for output in inferred.graph.output:
        if output.name not in declared:
            continue
        if not declared[output.name].HasField("shape"):
            found.append(("declared-shape", output.name, f"output {output.name} has no shape"))
        # The checker asks for a shape; one that does not follow from the graph is left open.
        elif not output.type.tensor_type.HasField("shape"):
            output.type.tensor_type.shape.CopyFrom(declared[output.name].shape)
    found += [
        ("declared-shape", i.name, f"input {i.name} has no shape")
        for i in model.graph.input
        if _is_tensor(i) and not i.type.tensor_type.HasField("shape")
    ]
    found += _contradictions(model, inferred)
    return inferred, tuple(found)


def _contradictions(model: onnx.ModelProto, inferred: onnx.ModelProto) -> Iterable[Found]:
    """Declared types and shapes that do not follow from the graph."""
    follows = {
        v.name: v.type.tensor_type
        for v in (*inferred.graph.value_info, *inferred.graph.output)
        if _is_tensor(v)
    }
    for value in (*model.graph.value_info, *model.graph.output):
        right = follows.get(value.name)
        if right is None or not _is_tensor(value):
            continue
        said = value.type.tensor_type
        if said.elem_type != right.elem_type and said.elem_type and right.elem_type:
            yield "declared-shape", value.name, f"{value.name} is declared with another type"
        elif said.HasField("shape") and right.HasField("shape"):
            pairs = list(zip(_sizes(said), _sizes(right), strict=False))
            differ = any(a is not None and b is not None and a != b for a, b in pairs)
            if differ or len(said.shape.dim) != len(right.shape.dim):
                yield (
                    "declared-shape", value.name,
                    f"{value.name} is declared as {_text(said)} and is {_text(right)}",
                )  # fmt: skip


def _is_tensor(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.WhichOneof("value") == "tensor_type")


def _sizes(kind: onnx.TypeProto.Tensor) -> list[int | None]:
    return [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]


def _text(kind: onnx.TypeProto.Tensor) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in _sizes(kind)) + "]"


def _domains(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    found: set[str] = set()
    for node in nodes:
        found.add(node.domain)
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                found |= _domains(graph.node)
    return found


def _without_data(graph: onnx.GraphProto) -> None:
    inputs = {i.name for i in graph.input}
    outside = [t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    for tensor in outside:
        graph.initializer.remove(tensor)
        if tensor.name not in inputs:
            graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
