"""A file in ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vcompress.bench.apart import bounded
from vcompress.bench.errors import UserError

Array = npt.NDArray[Any]


def open_session(model: Path | bytes, *, optimised: bool) -> Any:
    """An `onnxruntime.InferenceSession`, with all graph optimisations or without any.

    Raises:
        UserError: ONNX Runtime has no kernel for an operator as it stands there.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # nothing is timed
    given = model if isinstance(model, bytes) else str(model)
    try:
        with bounded():
            return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented as error:
        said = " ".join(str(error).split()).rpartition(" : ")[2]
        raise UserError(
            f"ONNX Runtime {onnxruntime.__version__} does not run the exported network: {said}. "
            "It computes in float32 on the CPU: look for float64 or integers in the forward pass."
        ) from None


def run_onnx(
    model: Path | bytes, images: Array, *, optimised: bool, batch_size: int = 32
) -> list[Array]:
    """All outputs of a file, over the images [N, C, H, W]."""
    session = open_session(model, optimised=optimised)
    entry = session.get_inputs()[0]
    size = entry.shape[0] if isinstance(entry.shape[0], int) else batch_size
    parts = []
    for start in range(0, len(images), size):
        with bounded():
            parts.append(session.run(None, {entry.name: images[start : start + size]}))
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def run_tensors(model: bytes, tensors: Mapping[str, Array], *, optimised: bool) -> Array:
    """The first output of a file, from inputs by name."""
    found: Array = open_session(model, optimised=optimised).run(None, dict(tensors))[0]
    return found
