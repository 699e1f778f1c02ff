"""Distil a teacher into a student: the student learns the teacher's softened outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vcompress.bench.errors import UserError

from ..stage import Context, Outcome, TrainConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

INPUTS = {"teacher": "trained", "student": "fresh"}


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    """Options of `vcompress distill`."""

    method: Literal["kd", "dkd", "dist", "lskd"] = "kd"
    """Loss on the teacher's logits: Hinton's, decoupled, by correlation, or standardised."""
    temperature: float = 4.0
    """Softens both distributions."""
    alpha: float = 0.7
    """Weight of the teacher against the labels, 0 to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise UserError(f"temperature = {self.temperature}: it must be above 0 (4 is usual).")
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha = {self.alpha}: it must be from 0 to 1.")


def apply(model: nn.Module, config: Config, context: Context) -> Outcome:
    """Train the student `model` under `context.teacher` (Hinton's KD and cross entropy)."""
    import torch

    from ..losses import distillation
    from ..train import fit

    teacher = context.teacher
    if teacher is None:
        raise UserError("distill needs a teacher: give --teacher NAME or a bundle.")
    teacher.eval()

    def loss(logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            target = teacher(images)
        return distillation(
            logits, target, labels, temperature=config.temperature, alpha=config.alpha,
            label_smoothing=config.label_smoothing, method=config.method,
        )  # fmt: skip

    return Outcome(model, fit(model, config, context, loss, name="distill"))
