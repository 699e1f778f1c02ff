"""Runs the ONNX checker, shape inference and ONNX Runtime on a file."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import onnx
import onnx.inliner

from .repair import repaired


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
