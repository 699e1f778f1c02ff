"""Which precision a bundle's ONNX file has, and which ones can be made of it."""

from __future__ import annotations

from vcompress.bench.bundle import Bundle
from vcompress.bench.errors import UserError

from .store import read_architecture

_MADE_HERE = {
    ("fp32", "fp16"), ("fp32", "bf16"), ("int8", "int8+fp16"), ("int8", "fp8"),
}  # fmt: skip
"""What can be made of a bundle's file without data: FP8 takes over the ranges of int8."""


def held_by(bundle: Bundle) -> str:
    """Precision of the bundle's model.onnx: fp32, int8, int8+fp16, ...

    Raises:
        UserError: the bundle's architecture is not readable.
    """
    architecture = read_architecture(bundle)
    half = architecture.get("precision", "fp32")
    if architecture["quantization"] is None:
        return str(half)
    return "int8" if half == "fp32" else f"int8+{half}"


def check_available(bundle: Bundle, holds: str, wanted: str | None) -> str:
    """The precision of the engine: what was asked for, else what the bundle holds.

    A float32 network can be cast down, a quantised one too; nothing is quantised here, which
    needs data, and nothing is widened.

    Raises:
        UserError: the bundle cannot give it, with what to do first.
    """
    quantization = read_architecture(bundle)["quantization"]
    if isinstance(quantization, dict) and quantization.get("target") != "tensorrt":
        raise UserError(
            f"{bundle.path} is quantised for {quantization.get('target')}, in a way that TensorRT "
            "does not take. Quantise the float bundle with --target tensorrt."
        )
    if wanted is None or wanted == holds:
        return holds
    if (holds, wanted) in _MADE_HERE:
        return wanted
    if wanted.startswith(("int8", "fp8")) and not holds.startswith("int8"):
        raise UserError(
            f"--precision {wanted}: {bundle.path} holds {holds}. Quantise it first: vcompress "
            f"quantize --model {bundle.path} --target tensorrt."
        )
    raise UserError(
        f"--precision {wanted}: {bundle.path} holds {holds}. Leave --precision out for an engine "
        f"in {holds}, or export the bundle that it was made from."
    )
