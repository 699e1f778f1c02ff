"""Calibration with the repairs that a network needs, each kept only where it helps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from .adaround import adaround
from .bias_correction import correct_bias
from .calibration import calibrate
from .equalize import equalize
from .placement import prepare

Choice = Literal["auto", "on", "off"]
GAIN_DB = 0.1
"""What a repair must add on images that it has not seen, to be kept by `auto`."""
FEW_BITS = 6
"""Up to so many, `auto` chooses the rounding of each weight."""


@dataclass(frozen=True)
class Repairs:
    """Which repairs to try. `auto` keeps equalisation and bias correction where they raise the
    SQNR of the logits on held-out images, and rounds adaptively at few bits."""

    equalize: Choice = "auto"
    correct_bias: Choice = "auto"
    adaround: Choice = "auto"


def calibrated(
    model: nn.Module,
    example: Tensor,
    calibration: Sequence[Tensor],
    held_out: Tensor,
    *,
    target: str,
    repairs: Repairs,
    observer: str = "mse",
    weight_bits: int = 8,
    keep_float: tuple[str, ...] = (),
) -> tuple[nn.Module, dict[str, Any]]:
    """A calibrated copy of `model`, and what was repaired with the SQNR before and after.

    Args:
        calibration: batches [B, C, H, W] that set ranges and repairs.
        held_out: [N, C, H, W], other images: `auto` judges on them.
    """

    def quantised(network: nn.Module) -> nn.Module:
        prepared = prepare(
            network, example, target=target, weight_bits=weight_bits, keep_float=keep_float
        )
        calibrate(prepared, calibration, observer)
        return prepared

    reference = _logits(model, held_out)
    best = quantised(model)
    found: dict[str, Any] = {"sqnr_db_before": _sqnr_db(reference, _logits(best, held_out))}
    level = found["sqnr_db_before"]
    if not isinstance(best, fx.GraphModule):  # quantised in parts: repairs want one graph
        return best, found
    if repairs.equalize != "off":
        equal, moved = equalize(model, calibration)
        if moved:
            tried = quantised(equal)
            reached = _sqnr_db(reference, _logits(tried, held_out))
            if repairs.equalize == "on" or reached > level + GAIN_DB:
                best, level, found["equalized_layers"] = tried, reached, len(moved)
    assert isinstance(best, fx.GraphModule)
    if repairs.adaround == "on" or (repairs.adaround == "auto" and weight_bits <= FEW_BITS):
        errors = adaround(best, calibration)
        level = _sqnr_db(reference, _logits(best, held_out))
        found["adaround"] = {
            "layers": len(errors),
            "error_nearest": sum(e.nearest for e in errors.values()) / max(1, len(errors)),
            "error_chosen": sum(e.chosen for e in errors.values()) / max(1, len(errors)),
        }
    if repairs.correct_bias != "off":
        tried = copy.deepcopy(best)
        shifts = correct_bias(tried, calibration)
        reached = _sqnr_db(reference, _logits(tried, held_out))
        if repairs.correct_bias == "on" or reached > level + GAIN_DB:
            best, level, found["corrected_layers"] = tried, reached, len(shifts)
    found["sqnr_db"] = level
    return best, found


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """[N, K, ...] on the CPU, in evaluation."""
    training = model.training
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    model.eval()
    parts = []
    with torch.no_grad():
        for batch in torch.split(images, 64):
            out = model(batch.to(device))
            if isinstance(out, dict):
                out = out["out"] if "out" in out else next(iter(out.values()))
            parts.append((out[0] if isinstance(out, (tuple, list)) else out).cpu())
    model.train(training)
    return torch.cat(parts)


def _sqnr_db(reference: Tensor, other: Tensor) -> float:
    error = float((reference - other).double().square().sum())
    signal = float(reference.double().square().sum())
    return 10 * float(torch.log10(torch.tensor(max(signal, 1e-300) / max(error, 1e-300))))
