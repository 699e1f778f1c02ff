"""One candidate of a search: an architecture, its input, how much of it remains, its precision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor

from vcompress.bench.errors import UserError
from vcompress.bench.ranges import at_least, check_ranges, share
from vcompress.export import onnx_export

from .. import quantization
from ..models.catalogue import build, make_spec
from ..models.cost import count_macs, count_parameters
from ..models.outputs import check_forward
from ..pruning import prune

Precision = Literal["fp32", "int8"]
CALIBRATION = 8
"""Number of random images that set the ranges of int8: a latency does not depend on them."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What is built, with random weights: latency and size do not depend on them."""

    model: str
    """A name that `make_spec` knows."""
    classes: Annotated[int, at_least(1)] = 1000
    size: tuple[int, int] = (224, 224)
    """Height and width of the input, pixels."""
    channels: Annotated[int, at_least(1)] = 3
    macs: Annotated[float, share(zero=False)] = 1.0
    """Share of the multiply-accumulates that remains, above 0, at most 1."""
    precision: Precision = "fp32"
    target: str = "onnxruntime"
    """Rules of int8: what the runtime takes."""
    maps: bool = False
    """Whether the network gives every pixel a class."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if min(self.size) < 1:
            raise UserError(f"size = {self.size}: expected two numbers of 1 or more.")


@dataclass(frozen=True)
class Made:
    """A candidate's file, and what can be counted without running it."""

    images: Tensor
    """Random inputs, `[N, C, H, W]`."""
    macs: int
    parameters: int


def make(candidate: Candidate, file: Path, seed: int = 0) -> Made:
    """Build the candidate, prune and quantise it untrained, and write its ONNX file.

    Raises:
        UserError: an unknown name, or an architecture that cannot be pruned so far.
    """
    torch.manual_seed(seed)
    spec = make_spec(
        candidate.model, candidate.classes, candidate.size, in_chans=candidate.channels
    )
    network = build(spec).eval()
    images = torch.randn(CALIBRATION, candidate.channels, *candidate.size)
    check_forward(network, images[:1], candidate.classes, spec.name, maps=candidate.maps)
    if candidate.macs < 1:
        prune(network, images[:1], macs=candidate.macs)
    macs, parameters = count_macs(network, images[:1]), count_parameters(network)
    if candidate.precision == "int8":
        prepared = quantization.prepare(network, images[:1], target=candidate.target)
        quantization.calibrate(prepared, [images])
        network = quantization.to_export(prepared.eval())
    onnx_export.export(network, file, ("input", tuple(images.shape[1:])))
    return Made(images, macs, parameters)
