"""The exported file against the network, in OpenVINO, for networks quantised for it."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vcompress.bench.errors import EnvironmentLacks

from .. import quantization

log = logging.getLogger(__name__)


LEAST_AGREEMENT = 0.999


def openvino_parity(model: nn.Module, file: Path, images: Tensor) -> dict[str, Any] | None:
    """What `export.parity_openvino` measures; None for other targets, or without OpenVINO.

    ONNX Runtime's parity has passed before. OpenVINO fuses otherwise, and rounding turns its last
    bits into steps, so a lower agreement here is a warning and stands in the metrics.
    """
    quantised = quantization.is_quantized(model)
    if not quantised or quantization.placement(model).get("target") != "openvino":
        return None
    from vcompress.export import parity_openvino

    try:
        found = parity_openvino.check(quantization.to_export(model), file, images)
    except EnvironmentLacks as error:
        log.warning("the file is not proved in OpenVINO: %s", error)
        return None
    if found.agreement.top1_agreement < LEAST_AGREEMENT:
        log.warning(
            "in OpenVINO %s %.2f %% of %d images get the network's class, SQNR %.1f dB",
            found.version, 100 * found.agreement.top1_agreement, found.images,
            found.agreement.sqnr_db,
        )  # fmt: skip
    if found.float_layers:
        log.warning("OpenVINO runs in floating point: %s", ", ".join(found.float_layers[:8]))
    return asdict(found)
