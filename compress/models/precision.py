"""The precision that a network is exported in; its weights in torch stay float32."""

from __future__ import annotations

from typing import Literal

from torch import nn

Precision = Literal["fp32", "fp16", "bf16"]


def precision_of(model: nn.Module) -> Precision:
    """Type of the floating point in the network's exported file."""
    found: Precision = getattr(model, "exported_precision", "fp32")
    return found


def set_precision(model: nn.Module, precision: Precision) -> None:
    """Note what the network is exported in; its weights in torch stay float32."""
    model.exported_precision = precision  # type: ignore[assignment]
