"""Fine-tune a backbone on labelled images; from a name it starts with random or given weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..stage import Context, Outcome, TrainConfig

if TYPE_CHECKING:
    from torch import nn

INPUTS = {"model": "fresh"}


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    """Options of `vcompress finetune`."""


def apply(model: nn.Module, config: Config, context: Context) -> Outcome:
    """Train `model` with cross entropy; the best validation epoch is kept."""
    from ..train import fit

    return Outcome(model, fit(model, config, context, name="finetune"))
