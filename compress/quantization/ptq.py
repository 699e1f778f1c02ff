"""Post-training quantisation without repairs: places quantisers and sets their ranges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from .calibration import calibrate
from .placement import prepare
from .quality import check_prepared


@dataclass(frozen=True)
class Scheme:
    """Where a network is quantised and how its ranges are chosen; `prepare` and `calibrate` say
    more of each."""

    target: str
    observer: str = "mse"
    weight_bits: int = 8
    keep_float: tuple[str, ...] = ()


def quantised(
    model: nn.Module, example: Tensor, calibration: Sequence[Tensor], scheme: Scheme
) -> nn.Module:
    """A calibrated copy of a float `model`.

    Args:
        example: [1, C, H, W], to learn the shapes.
        calibration: batches [B, C, H, W] float32, preprocessed.

    Raises:
        UserError: what `prepare` and `calibrate` refuse.
    """
    prepared = prepare(
        model, example, target=scheme.target, weight_bits=scheme.weight_bits,
        keep_float=scheme.keep_float,
    )  # fmt: skip
    if calibration:
        check_prepared(model, prepared, calibration[:1])
    calibrate(prepared, calibration, scheme.observer)
    return prepared
