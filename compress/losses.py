"""Losses as pure functions: shapes and scale are in each docstring, the paper too."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vcompress.bench.errors import UserError


def distillation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    alpha: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """`alpha * KD + (1 - alpha) * cross entropy`, a scalar, averaged over the batch.

    Args:
        student_logits: `[B, K]`.
        teacher_logits: `[B, K]`, detached by the caller.
        labels: `[B] int64`.
        temperature: softens both distributions; above 0.
        alpha: weight of the teacher, 0 to 1.
        label_smoothing: of the labels' part.
    """
    soft = kd(student_logits, teacher_logits, temperature)
    hard = F.cross_entropy(student_logits, labels, label_smoothing=label_smoothing)
    return alpha * soft + (1 - alpha) * hard


def kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of the softened distributions `[B, K]`, summed over the classes,
    averaged over the batch, times `temperature` squared so that its gradient keeps its scale.

    Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531.
    """
    if not temperature > 0:
        raise UserError(f"temperature = {temperature}: it must be above 0 (4 is usual).")
    if student_logits.shape != teacher_logits.shape:
        raise UserError(
            f"The student gives {tuple(student_logits.shape)} and the teacher "
            f"{tuple(teacher_logits.shape)} logits; both must know the same classes."
        )
    divergence = F.kl_div(
        F.log_softmax(student_logits / temperature, dim=1),
        F.log_softmax(teacher_logits / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return divergence * temperature**2
