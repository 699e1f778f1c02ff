"""Losses on outputs as pure functions; each docstring gives shapes, scale and paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from vcompress.bench.errors import UserError

ON_LOGITS = ("kd", "dkd", "dist", "lskd")


def distillation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    alpha: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """`alpha * kd + (1 - alpha) * cross entropy`, a scalar, averaged over the batch.

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


@dataclass
class Parts:
    """What a loss is the sum of, added up over the steps of an epoch."""

    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Note the parts of a batch, scalars by their names; gives their sum."""
        for name, part in parts.items():
            value = part.detach()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        return total(parts)

    def means(self, steps: int) -> dict[str, float]:
        """The mean of each over `steps`, largest first; empty where there is only one. The sums
        start again."""
        found = {name: float(value) / steps for name, value in self.sums.items()}
        self.sums.clear()
        return dict(sorted(found.items(), key=lambda x: -x[1])) if len(found) > 1 else {}


def total(parts: Mapping[str, Tensor]) -> Tensor:
    """The sum of a loss's named parts, a scalar."""
    return torch.stack(list(parts.values())).sum()


def on_logits(
    method: str, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """The loss `method`, one of `ON_LOGITS`, of logits `[B, K]` and labels `[B] int64`; a label
    that is not known (-1) is the teacher's."""
    if method == "dkd":
        known = torch.where(labels < 0, teacher_logits.argmax(1), labels)
        return dkd(student_logits, teacher_logits, known, temperature)
    loss = {"kd": kd, "dist": dist, "lskd": lskd}[method]
    return loss(student_logits, teacher_logits, temperature)


def kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of the softened distributions `[B, K]`, summed over the classes,
    averaged over the batch, times `temperature` squared so that its gradient keeps its scale.

    Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531.
    """
    check_logits(student_logits, teacher_logits, temperature)
    divergence = _divergence(student_logits / temperature, teacher_logits / temperature)
    return divergence * temperature**2


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    target_weight: float = 1.0,
    other_weight: float = 8.0,
) -> Tensor:
    """KD taken apart: the label's class against all others together, and the others among
    themselves, each with a weight of its own; times `temperature` squared.

    With weights 1 and the teacher's probability of the other classes it is `kd` again.

    Args:
        student_logits, teacher_logits: `[B, K]`.
        labels: `[B] int64`.
        target_weight, other_weight: the paper's alpha and beta.

    Zhao et al.: Decoupled Knowledge Distillation, CVPR 2022, arXiv:2203.08679.
    """
    check_logits(student_logits, teacher_logits, temperature)
    student, teacher = student_logits / temperature, teacher_logits / temperature
    target = F.one_hot(labels, student.shape[1]).bool()
    binary = _divergence(_binary(student, target), _binary(teacher, target))
    shape = (len(labels), -1)
    others = _divergence(student[~target].reshape(shape), teacher[~target].reshape(shape))
    return (target_weight * binary + other_weight * others) * temperature**2


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    between_weight: float = 1.0,
    within_weight: float = 1.0,
) -> Tensor:
    """One minus Pearson's correlation of the softened predictions `[B, K]`: of each sample over
    the classes, and of each class over the batch; times `temperature` squared.

    The student has to rank as the teacher does, not to match its values.

    Huang et al.: Knowledge Distillation from A Stronger Teacher, NeurIPS 2022, arXiv:2205.10536.
    """
    check_logits(student_logits, teacher_logits, temperature)
    student = F.softmax(student_logits / temperature, dim=1)
    teacher = F.softmax(teacher_logits / temperature, dim=1)
    between = 1 - F.cosine_similarity(_centred(student, 1), _centred(teacher, 1), dim=1).mean()
    within = 1 - F.cosine_similarity(_centred(student, 0), _centred(teacher, 0), dim=0).mean()
    return (between_weight * between + within_weight * within) * temperature**2


def lskd(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """`kd` on logits `[B, K]` that were standardised for each sample, so that the student need
    not copy the size of the teacher's logits.

    Sun et al.: Logit Standardization in Knowledge Distillation, CVPR 2024, arXiv:2403.01427.
    """
    return kd(_standardised(student_logits), _standardised(teacher_logits), temperature)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of logits `[B, K]`, summed over classes, averaged over the batch."""
    return F.kl_div(
        F.log_softmax(student, dim=1),
        F.log_softmax(teacher, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def _binary(logits: Tensor, target: Tensor) -> Tensor:
    """Logits `[B, 2]` of the label's class and of all others together."""
    others = logits.masked_fill(target, float("-inf")).logsumexp(1)
    return torch.stack([logits[target], others], dim=1)


def _centred(values: Tensor, dim: int) -> Tensor:
    return values - values.mean(dim, keepdim=True)


def _standardised(logits: Tensor) -> Tensor:
    centred = _centred(logits, 1)
    return centred / (centred.std(1, keepdim=True) + 1e-7)


def check_logits(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> None:
    """Raise a UserError for logits of other shapes, or a temperature that is not above 0."""
    if not temperature > 0:
        raise UserError(f"temperature = {temperature}: it must be above 0 (4 is usual).")
    if student_logits.shape != teacher_logits.shape:
        raise UserError(
            f"The student gives {tuple(student_logits.shape)} and the teacher "
            f"{tuple(teacher_logits.shape)} logits; both must know the same classes."
        )
