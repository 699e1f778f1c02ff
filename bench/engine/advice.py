"""Turns what a builder says when it refuses into one message with advice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError

_OTHER_TYPE = "leave 75 out of --sm, or export with --precision fp16 or int8+fp16."
_MEMORY = "Lower the largest --batch, or give a smaller --workspace-mib."
_SYMMETRIC = "TensorRT takes symmetric signed int8 only: quantise with --target tensorrt."
_ADVICE: tuple[tuple[tuple[str, ...], str], ...] = (
    (("(SM75)", "FP32"), f"TensorRT-RTX has no float32 for SM 75: {_OTHER_TYPE}"),
    (("(SM75)",), f"SM 75 lacks this type: {_OTHER_TYPE}"),
    (
        ("Cannot compile for target",),
        "One of the GPUs in --sm lacks a type of this graph (FP8 needs SM 89 or later, BF16 SM 80 "
        "or later): leave it out, or choose another --precision.",
    ),
    (("Failed to parse the ONNX model",), "Is it an ONNX model, and whole?"),
    (
        ("plugin",),
        "TensorRT has no such operator: leave it out of the network, as with the decoding and "
        "suppression behind a detector.",
    ),
    (
        ("must have same input types",),
        "A strongly typed graph has no mixed operands: put a Cast where the types meet, scales "
        "included (`vcompress cast` does).",
    ),
    (("out of memory",), _MEMORY),
    (("OutOfMemory",), _MEMORY),
    (("insufficient workspace",), "Give a larger --workspace-mib."),
    (("Could not find any implementation",), "Give a larger --workspace-mib."),
    (("zero point",), _SYMMETRIC),
    (("zeroPoint",), _SYMMETRIC),
    (("ZeroPoint",), _SYMMETRIC),
    (("zero-point",), _SYMMETRIC),
    (("scale",), "Scales must be positive constants: quantise with --target tensorrt."),
)
"""What stands in the message, all of it, and what to do; the first that fits."""
_NOISE = ("catchCudaError", "CUDA driver version is insufficient", "Cuda initialization failure")
"""What TensorRT-RTX says on every machine with no GPU."""


def refused(onnx_path: Path, said: Sequence[str]) -> UserError:
    """The builder's words, shortened, and the cure for the ones that are known."""
    lines = [" ".join(line.split()) for text in said for line in text.splitlines()]
    kept = [line for line in lines if line and not any(word in line for word in _NOISE)]
    text = " ".join(dict.fromkeys(kept)) or "it does not say why"
    cure = next((cure for words, cure in _ADVICE if all(word in text for word in words)), None)
    last = cure or "`vcompress lint` says which nodes break a rule of TensorRT."
    return UserError(f"{onnx_path}: TensorRT refuses it: {_short(text)} {last}")


def _short(text: str) -> str:
    text = text if len(text) <= 500 else text[:500] + " ..."
    return text if text.endswith((".", "...")) else text + "."
