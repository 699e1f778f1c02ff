"""The size of a graph after the functions that its file defines are expanded.

A few lines can expand to billions of nodes, or call themselves, and the ONNX checker follows them.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

MOST_NODES = 100_000
_Key = tuple[str, str]


def refusal(model: onnx.ModelProto) -> str | None:
    """Why the functions of a file cannot be expanded; None where they can."""
    bodies = {(f.domain, f.name): list(f.node) for f in model.functions}
    sizes: dict[_Key, int] = {}
    open_now: list[_Key] = []

    def size(nodes: Iterable[onnx.NodeProto]) -> int:
        total = 0
        for node in nodes:
            total += 1
            key = (node.domain, node.op_type)
            if key in bodies:
                total += expanded(key)
            for found in node.attribute:
                for graph in (found.g, *found.graphs):
                    total += size(graph.node)
            if total > MOST_NODES:
                raise _Refused(f"it expands to more than {MOST_NODES} nodes")
        return total

    def expanded(key: _Key) -> int:
        if key in open_now:
            raise _Refused(f"the function {key[0]}.{key[1]} calls itself")
        if key not in sizes:
            open_now.append(key)
            sizes[key] = size(bodies[key])
            open_now.pop()
        return sizes[key]

    try:
        size(model.graph.node)
        for key in bodies:
            expanded(key)
    except (_Refused, RecursionError) as error:
        return str(error) if isinstance(error, _Refused) else "its functions are nested too deeply"
    return None


class _Refused(Exception):
    """With the reason."""
