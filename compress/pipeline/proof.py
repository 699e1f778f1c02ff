"""Exports a network and proves that the file computes what the network computes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from vcompress.bench.bundle import InputSpec, Preprocess
from vcompress.bench.bundle.history import Entry
from vcompress.bench.errors import UserError
from vcompress.bench.timing import saturation
from vcompress.bench.working import working
from vcompress.export import onnx_export, parity
from vcompress.export import precision as precisions
from vcompress.export.onnx_properties import properties

from .. import quantization
from ..bundles.store import Network
from ..models.precision import Precision, precision_of

log = logging.getLogger(__name__)


def export_checked(
    network: Network,
    file: Path,
    images: Tensor,
    *,
    labels: tuple[str, ...],
    preprocess: Preprocess,
    task: str,
    opset: int | None = None,
    precision: Precision | None = None,
    history: Sequence[Entry] = (),
) -> tuple[onnx_export.ExportReport, parity.Parity]:
    """Export, and hold the file against the network on `images` `[N, C, H, W]`; `task` says what
    its outputs decide.

    `precision` fp16 or bf16 casts the file, once the float32 one has passed; None takes what the
    network was cast to.

    Raises:
        UserError: they disagree; the file is not left behind.
    """
    model = network.model.eval()
    half = precision or precision_of(model)
    quantised = quantization.is_quantized(model)
    exportable = quantization.to_export(model) if quantised else model
    if half == "bf16":
        if quantised:
            raise UserError("int8 with bf16: TensorRT's int8 goes with fp16. Cast to fp16.")
        least = precisions.OPSETS["bf16"]
        if opset is not None and opset < least:
            raise UserError(f"opset {opset}: bf16 needs {least} or later. Give --opset {least}.")
        opset = opset or least
    with working("exporting to ONNX"):
        exported = onnx_export.export(
            exportable,
            file,
            InputSpec.of(preprocess),
            metadata=properties(network.spec.name, labels, preprocess, history),
            opset=opset,
            output=network.output,
        )
    saturated = saturation.note(file)
    if saturated:
        log.warning(saturated)
    with working("comparing the file with torch"):
        proof = parity.check(exportable, file, images, task=task, output=network.output)
    if not proof.ok:
        file.unlink()
        why = f" {saturated}" if saturated else ""
        raise UserError(f"the exported file fails its parity check: {proof.message}{why}")
    if half == "fp32":
        return exported, proof
    with working(f"casting to {half}"):
        exported = onnx_export.cast_file(exported, InputSpec.of(preprocess).shape, half)
        kind = f"int8+{half}" if quantised else half
        proof = parity.check_cast(exportable, file, images, kind, task)
    if not proof.ok:
        file.unlink()
        raise UserError(f"the cast file fails its parity check: {proof.message}")
    return exported, proof
