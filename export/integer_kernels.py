"""Whether the runtime's integer kernels compute what the operators between Q and DQ compute.

With its optimisations on, ONNX Runtime replaces operators between DequantizeLinear and
QuantizeLinear by integer kernels of its own. One that is wrong is seen by nobody who looks at the
operators one by one: the integer average pool of ONNX Runtime 1.32 divides a window that reaches
over the border (`ceil_mode`) by the wrong number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from .runtime import Array, run_onnx, run_tensors

MOST_NODES = 8
"""Operators between two roundings, beyond which no kernel takes the place of them all."""
MOST_OFF = 1
"""Integers that a result may be off: a value in the middle of two may be rounded to either."""


@dataclass(frozen=True)
class _Part:
    """The nodes from some integer tensors to the next one, in order of execution."""

    inputs: tuple[str, ...]
    output: str
    nodes: tuple[onnx.NodeProto, ...]


def wrong_kernel(path: Path, images: Array, batch_size: int) -> str | None:
    """The first integer tensor that the runtime makes otherwise from the same integer tensors, with
    its optimisations on and off.

    Args:
        path: an ONNX file with Q/DQ.
        images: `[N, C, H, W] float32`, of which the first batch is run.

    Returns:
        operators, tensor and how far off, as part of a sentence; None where all are right.
    """
    proto = onnx.load(str(path))
    types = _types(proto)
    parts = list(_parts(proto, types))
    names = list(dict.fromkeys(name for part in parts for name in part.inputs))
    if not names:
        return None
    seen = onnx.ModelProto()
    seen.CopyFrom(proto)
    del seen.graph.output[:]
    seen.graph.output.extend(_value(name, types) for name in names)
    batch = images[:batch_size]
    made = run_onnx(seen.SerializeToString(), batch, optimised=False, batch_size=len(batch))
    values = dict(zip(names, made, strict=True))
    for part in parts:
        file = _alone(proto, part, types)
        given = {name: values[name] for name in part.inputs}
        plain, fused = (run_tensors(file, given, optimised=on) for on in (False, True))
        off = np.abs(plain.astype(np.int64) - fused.astype(np.int64))
        if off.max(initial=0) > MOST_OFF:
            what = " and ".join(
                node.op_type for node in part.nodes if not node.op_type.endswith("eLinear")
            )
            share = float((off > MOST_OFF).mean())
            return (
                f"{what or 'rounding again'} before {part.output}, which the runtime's integer "
                f"kernel gets wrong ({share:.2%} of the values, by up to {off.max()} steps)"
            )
    return None


def _types(proto: onnx.ModelProto) -> dict[str, int]:
    """Element types of the integer tensors that QuantizeLinear makes."""
    stored = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    return {
        node.output[0]: stored[node.input[2]]
        for node in proto.graph.node
        if node.op_type == "QuantizeLinear" and len(node.input) > 2 and node.input[2] in stored
    }


def _parts(proto: onnx.ModelProto, types: Mapping[str, int]) -> Iterator[_Part]:
    maker = {name: node for node in proto.graph.node for name in node.output}
    order = {id(node): place for place, node in enumerate(proto.graph.node)}
    stored = {tensor.name for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.output[0] not in types:
            continue
        taken: dict[int, onnx.NodeProto] = {}
        inputs: list[str] = []
        whole, waiting = True, [node]
        while waiting and whole:
            one = waiting.pop()
            if id(one) in taken:
                continue
            taken[id(one)] = one
            for name in filter(None, one.input):
                if name in types:
                    inputs.append(name)
                elif name in maker:
                    waiting.append(maker[name])
                elif name not in stored:
                    whole = False  # an image in float
            whole = whole and len(taken) <= MOST_NODES + len(inputs)
        if whole and inputs:
            nodes = tuple(sorted(taken.values(), key=lambda one: order[id(one)]))
            yield _Part(tuple(dict.fromkeys(inputs)), node.output[0], nodes)


def _value(name: str, types: Mapping[str, int]) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, types[name], None)


def _alone(proto: onnx.ModelProto, part: _Part, types: Mapping[str, int]) -> bytes:
    """A file of that part alone."""
    used = {name for node in part.nodes for name in node.input}
    graph = onnx.helper.make_graph(
        part.nodes, "part", [_value(name, types) for name in part.inputs],
        [_value(part.output, types)],
        [tensor for tensor in proto.graph.initializer if tensor.name in used],
    )  # fmt: skip
    model = onnx.helper.make_model(
        graph, opset_imports=proto.opset_import, ir_version=proto.ir_version,
        functions=proto.functions,
    )  # fmt: skip
    return bytes(model.SerializeToString())
