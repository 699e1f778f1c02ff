"""Classification, one class an image: cross entropy and the distillation losses on outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vcompress.bench.tasks import classification
from vcompress.bench.tasks.task import Array, Task

from ..data.unlabelled import NO_LABEL
from ..distillation import losses
from .task import TrainingTask


@dataclass(frozen=True)
class Classification:
    """Targets `[B] int64`, or `[B, K] float32` where images were mixed."""

    deployed: Task = classification.TASK
    distils: tuple[str, ...] = (
        "kd", "dkd", "dist", "lskd", "fitnet", "at", "infonce", "srd", "self",
    )  # fmt: skip
    mixes: bool = True
    has_classes: bool = True
    starts: bool = False

    def tensor(self, targets: Array | Tensor) -> Tensor:
        found = torch.as_tensor(targets)
        return found if found.is_floating_point() else found.long()  # mixed ones are shares

    def no_targets(self, outputs: Tensor) -> Tensor:
        return torch.full(outputs.shape[:1], NO_LABEL, device=outputs.device)

    def loss(
        self,
        outputs: Tensor,
        targets: Tensor,
        label_smoothing: float = 0.0,
        labelled: float | None = None,
    ) -> dict[str, Tensor]:
        if labelled is None:
            value = F.cross_entropy(outputs, targets, label_smoothing=label_smoothing)
        else:
            value = F.cross_entropy(
                outputs, targets, ignore_index=NO_LABEL, reduction="sum",
                label_smoothing=label_smoothing,
            ) / (len(targets) * labelled)  # fmt: skip
        return {"cross_entropy": value}

    def soft(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return losses.kd(student, teacher, temperature)

    def distil(
        self, method: str, student: Tensor, teacher: Tensor, targets: Tensor, temperature: float
    ) -> Tensor:
        return losses.on_logits(method, student, teacher, targets, temperature)

    def mixture(self, outputs: Tensor, shares: Tensor, temperature: float) -> Tensor:
        """Logits whose softmax at `temperature` is the mean of the softened distributions."""
        mixed = F.log_softmax(outputs / temperature, dim=2) + shares.log()[:, :, None]
        return mixed.logsumexp(0) * temperature

    def sureness(self, outputs: Tensor) -> Tensor:
        """One minus the entropy over its maximum."""
        p = F.softmax(outputs, dim=-1)
        entropy = -(p * p.clamp_min(1e-12).log()).sum(-1)
        return 1 - entropy / math.log(outputs.shape[-1])

    def harm(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The best other logit less the label's; a tie goes to the class with the lower number."""
        own = outputs.gather(1, targets[:, None])[:, 0]
        others = outputs.scatter(1, targets[:, None], float("-inf")).amax(1)
        wrong = outputs.argmax(1) != targets
        # Of two equal logits argmax decides, which a difference of 0 does not show.
        least = torch.finfo(outputs.dtype).tiny
        return torch.where(wrong, (others - own).clamp_min(least), (others - own).clamp_max(0))

    def numbers(self, outputs: Tensor) -> Tensor:
        return outputs.float().softmax(1)

    def apart(self, first: Tensor, second: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """The class that each gives; the surer the two are, the more they disagree."""
        shares = [found.softmax(1) for found in (first, second)]
        said = tuple(s.argmax(1) for s in shares)
        sure = shares[0].amax(1) + shares[1].amax(1)
        return (said[0], said[1]), torch.where(said[0] != said[1], sure, 0.0)

    def start(self, head: nn.Module) -> None:
        """A fresh head gives every class about the same."""


def fitted(targets: Array | None) -> TrainingTask:
    """The same for every data set."""
    return Classification()
