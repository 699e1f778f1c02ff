"""Calibration with repairs, each kept only where it helps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor, fx, nn

from vcompress.bench.errors import UserError
from vcompress.bench.working import working
from vcompress.export import parity

from .adaround import adaround
from .bias_correction import correct_bias
from .equalize import equalize
from .ptq import Scheme, quantised
from .quality import COARSE_BITS, LEAST_DB, check_level
from .trace import Untraceable, known_size

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


def repaired(
    model: nn.Module,
    example: Tensor,
    calibration: Sequence[Tensor],
    held_out: Tensor,
    scheme: Scheme,
    repairs: Repairs,
    output: str | None = None,
    min_sqnr_db: float = LEAST_DB,
) -> tuple[nn.Module, dict[str, Any]]:
    """A calibrated copy of `model`, and what was repaired with the SQNR before and after.

    Args:
        example: [1, C, H, W], to learn the shapes.
        calibration: batches [B, C, H, W] that set ranges and repairs.
        held_out: [N, C, H, W], other images: `auto` judges on them.
        output: of several, the name of the one that is judged.
        min_sqnr_db: what the outputs must reach on `held_out`, decibels; not asked of weights of
            5 bits and fewer.

    Raises:
        UserError: a repair that is `on` for a network that is quantised in parts, or what
            `prepare` and `calibrate` refuse.
    """
    with working("running the float network"):
        reference = parity.run_torch(model, held_out, output=output)

    def sqnr_db(network: nn.Module) -> float:
        found = parity.run_torch(network, held_out, output=output)
        return parity.compare(reference, found).sqnr_db

    def near(network: nn.Module, level: float) -> None:
        if scheme.weight_bits > COARSE_BITS:
            check_level(network, level, held_out, min_sqnr_db)

    count = sum(map(len, calibration))
    with working(f"calibrating on {count} images"):
        best = quantised(model, example, calibration, scheme)
        level = sqnr_db(best)
    found: dict[str, Any] = {"sqnr_db_before": level, "sqnr_db": level}
    if not isinstance(best, fx.GraphModule):
        wanted = [name for name, choice in asdict(repairs).items() if choice == "on"]
        if wanted:
            raise UserError(
                f"{', '.join(wanted)} = on: this network cannot be traced whole and is quantised "
                "in parts, and a repair needs one graph. Leave it at auto, which skips it here."
            )
        near(best, level)
        return best, found
    if repairs.equalize != "off":
        equal, moved = model, list[str]()
        try:
            with working("equalising"), known_size(model, example):
                equal, moved = equalize(model, calibration)
        except Untraceable:  # it was traced around a module that this one has to look into
            if repairs.equalize == "on":
                raise
        if moved:
            with working(f"calibrating the equalised network on {count} images"):
                tried = quantised(equal, example, calibration, scheme)
                reached = sqnr_db(tried)
            if repairs.equalize == "on" or reached > level + GAIN_DB:
                best, level, found["equalized_layers"] = tried, reached, len(moved)
    assert isinstance(best, fx.GraphModule)
    if repairs.adaround == "on" or (repairs.adaround == "auto" and scheme.weight_bits <= FEW_BITS):
        with working("AdaRound"):
            errors = adaround(best, calibration)
        level = sqnr_db(best)
        found["adaround"] = {
            "layers": len(errors),
            "error_nearest": sum(e.nearest for e in errors.values()) / max(1, len(errors)),
            "error_chosen": sum(e.chosen for e in errors.values()) / max(1, len(errors)),
        }
    if repairs.correct_bias != "off":
        tried = copy.deepcopy(best)
        with working("correcting biases"):
            shifts = correct_bias(tried, calibration)
            reached = sqnr_db(tried)
        if repairs.correct_bias == "on" or reached > level + GAIN_DB:
            best, level, found["corrected_layers"] = tried, reached, len(shifts)
    near(best, level)
    found["sqnr_db"] = level
    return best, found
