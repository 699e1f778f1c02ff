"""The exported file against the network, in OpenVINO, for networks quantised for it."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vcompress.export import parity_openvino

from .. import quantization
from .measure import Runtime

log = logging.getLogger(__name__)


LEAST_AGREEMENT = 0.999


def openvino_parity(
    model: nn.Module, file: Path, images: Tensor, runtime: Runtime, task: str
) -> dict[str, Any] | None:
    """What `export.parity_openvino` measures; None where the file is measured in another runtime.

    ONNX Runtime's parity has passed before. OpenVINO fuses differently, so values near a rounding
    edge flip: a lower agreement here is a warning and stands in the metrics.

    Args:
        model: a network that was quantised for OpenVINO.
        images: [N, C, H, W], preprocessed.
        runtime: from `runtime_of`.
        task: says what the outputs decide.
    """
    if runtime.name != "openvino":
        return None
    found = parity_openvino.check(quantization.to_export(model), file, images, task=task)
    if found.agreement.top1_agreement < LEAST_AGREEMENT:
        log.warning(
            "in OpenVINO %s %.2f %% of %d images are decided as in torch, SQNR %.1f dB",
            found.version, 100 * found.agreement.top1_agreement, found.images,
            found.agreement.sqnr_db,
        )  # fmt: skip
    if found.float_layers:
        log.warning("OpenVINO runs in floating point: %s", ", ".join(found.float_layers[:8]))
    return asdict(found)
