"""Training with a teacher beside the labels: recovery after pruning, and QAT."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..distillation.losses import total
from ..models.layout import beside
from ..tasks.task import TrainingTask
from .config import TaughtConfig


def from_teacher(
    teacher: nn.Module, config: TaughtConfig, task: TrainingTask
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """`alpha * soft + (1 - alpha) * loss against the targets`, as the training loop calls it: with
    outputs `[B, K]`, images `[B, C, H, W]` and targets `[B, ...]`. The teacher is asked without
    gradients, in eval mode, where the images are."""
    teacher.eval()
    ask = beside(teacher)

    def loss(outputs: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = ask(images)
        soft = task.soft(outputs, wanted, config.temperature)
        hard = total(task.loss(outputs, targets, config.label_smoothing))
        return config.alpha * soft + (1 - config.alpha) * hard

    return loss
