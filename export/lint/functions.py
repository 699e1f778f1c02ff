"""The size of a graph after the functions that its file defines are expanded.

A few lines can expand to billions of nodes, or call themselves, and the ONNX checker follows them.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

MOST_NODES = 100_000
MOST_BYTES = 2**28
"""That functions may add: a constant in one of them is copied at each call."""
_Key = tuple[str, str]


def refusal(model: onnx.ModelProto) -> str | None:
    """Why the functions of a file cannot be expanded; None where they can."""
    bodies = {(f.domain, f.name): list(f.node) for f in model.functions}
    sizes: dict[_Key, tuple[int, int]] = {}
    open_now: list[_Key] = []

    def size(nodes: Iterable[onnx.NodeProto]) -> tuple[int, int]:
        """Nodes, and bytes of the functions that they call."""
        total = more = 0
        for node in nodes:
            total += 1
            key = (node.domain, node.op_type)
            inner = [expanded(key)] if key in bodies else []
            for found in node.attribute:
                inner += [size(graph.node) for graph in (found.g, *found.graphs)]
            total += sum(count for count, _ in inner)
            more += sum(held for _, held in inner)
            if total > MOST_NODES:
                raise _Refused(f"it expands to more than {MOST_NODES} nodes")
            if more > MOST_BYTES:
                raise _Refused(f"its functions expand to more than {MOST_BYTES >> 20} MiB")
        return total, more

    def expanded(key: _Key) -> tuple[int, int]:
        if key in open_now:
            raise _Refused(f"the function {key[0]}.{key[1]} calls itself")
        if key not in sizes:
            open_now.append(key)
            count, held = size(bodies[key])
            sizes[key] = count, held + sum(node.ByteSize() for node in bodies[key])
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
