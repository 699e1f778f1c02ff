"""Multi-label classification, any number of labels an image: binary cross entropy for each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vcompress.bench.tasks import multilabel
from vcompress.bench.tasks.task import Array, Task

from .task import TrainingTask


@dataclass(frozen=True)
class MultiLabel:
    """Targets `[B, K] float32`, 0 to 1; a row of -1 is an image without labels."""

    deployed: Task = multilabel.TASK
    distils: tuple[str, ...] = ("kd", "fitnet", "at", "srd", "self")
    mixes: bool = True
    has_classes: bool = False
    starts: bool = False

    def tensor(self, targets: Array | Tensor) -> Tensor:
        return torch.as_tensor(targets, dtype=torch.float32)

    def no_targets(self, outputs: Tensor) -> Tensor:
        return torch.full_like(outputs, -1)

    def loss(
        self,
        outputs: Tensor,
        targets: Tensor,
        label_smoothing: float = 0.0,
        labelled: float | None = None,
    ) -> dict[str, Tensor]:
        """Binary cross entropy, summed over the labels, so that it stands beside distillation as
        the cross entropy of classes does. Smoothing draws each target towards 0.5."""
        known = (targets >= 0).all(1)
        wanted = targets.clamp_min(0) * (1 - label_smoothing) + label_smoothing / 2
        each = F.binary_cross_entropy_with_logits(outputs, wanted, reduction="none").sum(1)
        share = 1.0 if labelled is None else labelled
        return {"binary_cross_entropy": (each * known).sum() / (len(targets) * share)}

    def soft(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """KL(teacher || student) of each label's softened probability, summed over the labels,
        averaged over the batch, times `temperature` squared.

        Yang et al.: Multi-Label Knowledge Distillation, ICCV 2023, arXiv:2308.06453, the logits'
        part: one binary distribution for each label.
        """
        t, s = teacher / temperature, student / temperature
        p = torch.sigmoid(t)
        divergence = p * (F.logsigmoid(t) - F.logsigmoid(s))
        divergence = divergence + (1 - p) * (F.logsigmoid(-t) - F.logsigmoid(-s))
        return divergence.sum(1).mean() * temperature**2

    def distil(
        self, method: str, student: Tensor, teacher: Tensor, targets: Tensor, temperature: float
    ) -> Tensor:
        return self.soft(student, teacher, temperature)

    def mixture(self, outputs: Tensor, shares: Tensor, temperature: float) -> Tensor:
        """Logits whose probabilities at `temperature` are the mean of the softened ones."""
        yes = F.logsigmoid(outputs / temperature) + shares.log()[:, :, None]
        no = F.logsigmoid(-outputs / temperature) + shares.log()[:, :, None]
        return (yes.logsumexp(0) - no.logsumexp(0)) * temperature

    def sureness(self, outputs: Tensor) -> Tensor:
        """The mean distance of the probabilities from 0.5, doubled."""
        return (2 * torch.sigmoid(outputs) - 1).abs().mean(-1)

    def harm(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The logit of the label that is most wrong, with the wrong sign."""
        return torch.where(targets > 0.5, -outputs, outputs).amax(1)

    def numbers(self, outputs: Tensor) -> Tensor:
        return torch.sigmoid(outputs.float())

    def apart(self, first: Tensor, second: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """The label on which the probabilities lie farthest apart, if one of the two gives it."""
        differ = (first > 0) != (second > 0)
        distance = (torch.sigmoid(first) - torch.sigmoid(second)).abs() * differ
        number = distance.argmax(1)
        return (number, number), distance.amax(1)

    def start(self, head: nn.Module) -> None:
        """A fresh head gives every label about the probability 0.5."""


def fitted(targets: Array | None) -> TrainingTask:
    """The same for every data set."""
    return MultiLabel()
