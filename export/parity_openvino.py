"""Parity in OpenVINO: proves that it computes what torch computes, and says in which type."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from vcompress.bench.runtimes import openvino
from vcompress.bench.tasks import CLASSIFICATION

from .parity import Agreement, compare, run_torch

LAYERS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
_INT8 = ("u8", "i8")


@dataclass(frozen=True)
class OpenVinoParity:
    """Torch against OpenVINO's CPU on one file."""

    version: str
    images: int
    agreement: Agreement
    int8_layers: int
    """Convolutions and matrix products that run in int8, read from the compiled graph."""
    float_layers: tuple[str, ...]
    """Those that do not, by name."""


def check(
    model: nn.Module, path: Path | str, images: Tensor, batch: int = 32, task: str = CLASSIFICATION
) -> OpenVinoParity:
    """Compare `model` (from `to_export`) with the file in OpenVINO on `images` [N, C, H, W].

    Raises:
        EnvironmentLacks: OpenVINO is not installed.
        UserError: it does not load or run the file.
    """
    reference = run_torch(model, images, batch)
    opened = openvino.open_session(Path(path), threads=1)
    with opened as session:
        name, output = session.inputs[0].name, session.outputs[0].name
        fixed = session.inputs[0].shape[0]
        size = fixed if isinstance(fixed, int) else batch
        array = images.cpu().numpy()
        parts = [
            session.run({name: array[start : start + size]})[output]
            for start in range(0, len(array), size)
        ]
        low, high = layers(opened.compiled)
        version = session.facts.version
    agreement = compare(reference, np.concatenate(parts), task)
    return OpenVinoParity(version, len(images), agreement, len(low), high)


def layers(compiled: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the layers of a compiled model that run in int8, and of those that do not."""
    low: list[str] = []
    high: list[str] = []
    for node in compiled.get_runtime_model().get_ops():
        facts = node.get_rt_info()
        kind, precision = (str(facts[k].value) for k in ("layerType", "runtimePrecision"))
        if kind in LAYERS:
            (low if precision in _INT8 else high).append(str(node.get_friendly_name()))
    return tuple(low), tuple(high)
