"""Runs the ONNX checker, shape inference and ONNX Runtime, which can crash on a hostile file.

Run as a program, this module reads one file in a process of its own with bounded time and memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner

from vcompress.bench.apart import ask, serve

from .repair import repaired

Refusal = Callable[[Path], str | None]


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without functions of its own, and with the types and shapes that follow."""
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def refusal(path: Path) -> str | None:
    """What the checker and strict shape inference say against a file; None where nothing."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
        # Values that are followed through the graph contradict more than the checker sees.
        inferred(onnx.load(str(path), load_external_data=False))
    except Exception as error:  # their exceptions have no common base
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        kept = [line for line in lines if not line.startswith("==>")]
        return " ".join(dict.fromkeys(kept))[:600] or type(error).__name__
    return None


def repaired_refusal(path: Path) -> str | None:
    """As `refusal`, of the file as `repaired` makes it."""
    try:
        model, found = repaired(onnx.load(str(path), load_external_data=False))
        whole = onnx.ModelProto()
        whole.CopyFrom(model)
        if not found:
            return "nothing in it can be repaired"
        for value in (*model.graph.input, *model.graph.output):
            kind = value.type
            if kind.WhichOneof("value") == "tensor_type" and not kind.tensor_type.HasField("shape"):
                kind.tensor_type.shape.SetInParent()  # not known: the checker wants one
        onnx.checker.check_model(model)
        inferred(whole)
    except Exception as error:  # as above
        return " ".join(str(error).split())[:600] or type(error).__name__
    return None


def load_refusal(path: Path) -> str | None:
    """What ONNX Runtime says when it opens a file; None where it does, or is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base
        return " ".join(str(error).split())[:400]
    return None


def has_onnxruntime() -> bool:
    """Whether ONNX Runtime is installed."""
    return find_spec("onnxruntime") is not None


def asked_apart(which: Refusal, path: Path, timeout_s: float) -> tuple[str | None, bool]:
    """What `refusal` or `load_refusal` says in a process of its own, and whether that process ended
    without an answer."""
    request = {"path": str(path), "device": "cpu", "which": which.__name__}
    reply = ask(__name__, request, timeout_s)
    if reply.status is None:
        return f"no answer within {timeout_s:g} s", True
    if reply.status != 0 or "refusal" not in reply.answer:
        return f"its process {reply.end}", True
    return reply.answer["refusal"], False


def _work(request: dict[str, Any]) -> dict[str, Any]:
    known = (refusal, repaired_refusal, load_refusal)
    which = {found.__name__: found for found in known}[request["which"]]
    return {"refusal": which(Path(request["path"]))}


if __name__ == "__main__":
    sys.exit(serve(_work))
