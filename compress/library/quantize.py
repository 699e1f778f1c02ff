"""`compress.quantize`: a calibrated copy of a network, with the repairs that it needs."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from vcompress.export.library import answer

from .. import quantization
from ..data.calibration import in_parts
from ..options import TargetName
from ..pruning.shadow import shadow
from ..quantization.ptq import Scheme
from ..quantization.quality import LEAST_DB
from ..quantization.repairs import Choice, Repairs, repaired
from .loaders import Batches, Transform, take

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuantizeReport:
    """Where a network was quantised, and what that cost on images that it was not calibrated on."""

    target: str
    layers: int
    """Layers with int8 weights."""
    tensors: int
    """Activations that are rounded."""
    kept_float: tuple[tuple[str, str, str], ...]
    """What stayed in floating point: name, operation, reason. Where the network as a whole could
    not be traced, it says what stopped that."""
    sqnr_db: float
    """Signal to error of the outputs against the float network, decibels; 20 and more is usual
    where the accuracy stays."""
    sqnr_db_before: float
    """The same without repairs."""
    repairs: dict[str, Any]
    """Equalised and corrected layers, and rounding, where a repair helped."""
    images: int
    """That calibrated."""
    unchanged: nn.Module = field(repr=False, compare=False)
    """The float network without its weights: what `save(factory=...)` finds pruned layers in."""


class Quantized(nn.Module):
    """A quantised network as type checkers see it: that of the user, with a report."""

    report: QuantizeReport


def quantize(
    net: nn.Module,
    data: Batches | Tensor,
    *,
    target: TargetName = "onnxruntime",
    transform: Transform | None = None,
    images: int = 256,
    held_out: int = 128,
    observer: Literal["mse", "minmax", "percentile", "entropy"] = "mse",
    weight_bits: int = 8,
    keep_float: tuple[str, ...] = (),
    equalize: Choice = "auto",
    correct_bias: Choice = "auto",
    adaround: Choice = "auto",
    output: str | None = None,
    min_sqnr_db: float = LEAST_DB,
) -> Quantized:
    """A copy of `net` that computes with int8 values as the target will; `net` stays as it is.

    It is calibrated and can be exported at once, or trained on in your own loop (QAT: its steps are
    parameters; Esser et al., LSQ, ICLR 2020, arXiv:1902.08153), at about a tenth of the learning
    rate of before. For the last epochs call `freeze_norms` after `train()`.

    Args:
        net: a float32 network of one input. What it returns may be a tensor, a tuple or a
            dictionary.
        data: batches of preprocessed training images `[B, C, H, W] float32`: tensors, tuples or
            dictionaries. The first images calibrate, the next ones judge the repairs; a loader that
            shuffles shows all classes.
        target: where it will run, which decides where values are rounded: `onnxruntime`,
            `openvino` or `tensorrt`.
        transform: from a batch of `data` to its images, or to a tuple or a dictionary with them.
        images: number that set the ranges; 100 and more are good.
        held_out: number of further images that judge. Of a loader with fewer, a third.
        observer: how a range is chosen.
        weight_bits: 2 to 8; 7 for x86 machines without VNNI.
        keep_float: layers that stay in floating point: paths, or patterns such as "layer4.*".
        equalize: cross-layer equalisation (arXiv:1906.04721): `auto` keeps it where it helps.
        correct_bias: bias correction (the same paper): `auto` keeps it where it helps.
        adaround: AdaRound (arXiv:2004.10568): `auto` tries it at 6 bits and fewer.
        output: of a network that returns a dictionary, the name of the output that is judged;
            default: `out`, else the first tensor.
        min_sqnr_db: the least signal to error of the outputs on the images that judge, decibels;
            not asked of weights of 5 bits and fewer.

    Returns:
        the network; its `report` is a `QuantizeReport`. A deep copy of it has no report.

    Raises:
        UserError: a loader that gives nothing or other things than images, values that are not
            finite, a network that is quantised already or has nothing to quantise (the message
            names what stops the tracer), an unknown layer; a traced network that computes something
            else, or an SQNR below `min_sqnr_db`: both name the first tensor that differs.
    """
    found = take(data, transform, images + held_out)
    answer(net, found[:1], output)
    calibration, others = _divided(found, images, held_out)
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    made, repairing = repaired(
        net, found[:1].to(device), in_parts(calibration), others,
        Scheme(target, observer, weight_bits, keep_float),
        Repairs(equalize, correct_bias, adaround), output, min_sqnr_db,
    )  # fmt: skip
    where = quantization.placement(made)
    layers, tensors = quantization.count_quantised(where)
    if not where.get("graph", True):
        log.info("quantize: in parts, since %s", where["float"][0]["reason"])
    quantized = cast(Quantized, made.train(net.training))
    quantized.report = QuantizeReport(
        target=target, layers=layers, tensors=tensors,
        kept_float=tuple((f["name"], f["operation"], f["reason"]) for f in where["float"]),
        sqnr_db=repairing.pop("sqnr_db"), sqnr_db_before=repairing.pop("sqnr_db_before"),
        repairs=repairing, images=len(calibration),
        unchanged=shadow(net, lambda tensor: torch.empty_like(tensor, device="meta")),
    )  # fmt: skip
    return quantized


def _divided(found: Tensor, images: int, held_out: int) -> tuple[Tensor, Tensor]:
    """Images that calibrate, and others that judge; of one image alone the same."""
    if len(found) < 2:
        return found, found
    rest = len(found) - images if len(found) == images + held_out else len(found) // 3
    rest = max(1, min(rest, held_out))
    return found[:-rest], found[-rest:]
