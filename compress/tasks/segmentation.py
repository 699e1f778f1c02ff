"""Semantic segmentation, a class for each pixel: cross entropy over the pixels that have one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vcompress.bench.data.dataset import IGNORED
from vcompress.bench.tasks import segmentation
from vcompress.bench.tasks.task import Array, Task

from ..distillation import map_losses
from .task import TrainingTask


@dataclass(frozen=True)
class Segmentation:
    """Logits `[B, K, h, w]` at the network's stride; targets `[B, H, W] int64`, where `IGNORED`
    stands for no class. A mask without any is an image without labels."""

    deployed: Task = segmentation.TASK
    distils: tuple[str, ...] = ("kd", "lskd", "dist", "cwd", "skd", "fitnet", "at", "self")
    mixes: bool = False
    has_classes: bool = False
    starts: bool = False

    def tensor(self, targets: Array | Tensor) -> Tensor:
        return torch.as_tensor(targets).long()

    def no_targets(self, outputs: Tensor) -> Tensor:
        shape = (len(outputs), *outputs.shape[2:])
        return torch.full(shape, IGNORED, device=outputs.device)

    def loss(
        self,
        outputs: Tensor,
        targets: Tensor,
        label_smoothing: float = 0.0,
        labelled: float | None = None,
    ) -> dict[str, Tensor]:
        """Cross entropy at the masks' size, the mean over the pixels that have a class."""
        each = F.cross_entropy(
            map_losses.resized(outputs, targets.shape[1:]), targets, ignore_index=IGNORED,
            reduction="sum", label_smoothing=label_smoothing,
        )  # fmt: skip
        known = targets != IGNORED
        count = known.sum().clamp_min(1)
        if labelled is not None:  # of the images that have labels, as many as a batch usually has
            count = count * (len(targets) * labelled) / known.flatten(1).any(1).sum().clamp_min(1)
        return {"cross_entropy": each / count}

    def soft(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return map_losses.on_logits("kd", student, teacher, temperature)

    def distil(
        self, method: str, student: Tensor, teacher: Tensor, targets: Tensor, temperature: float
    ) -> Tensor:
        return map_losses.on_logits(method, student, teacher, temperature)

    def mixture(self, outputs: Tensor, shares: Tensor, temperature: float) -> Tensor:
        """Logits whose softmax at `temperature` is the mean of the softened distributions."""
        mixed = F.log_softmax(outputs / temperature, dim=2) + shares.log()[:, :, None, None, None]
        return mixed.logsumexp(0) * temperature

    def sureness(self, outputs: Tensor) -> Tensor:
        """One minus the entropy over its maximum, the mean over the pixels."""
        p = F.softmax(outputs, dim=-3)
        entropy = -(p * p.clamp_min(1e-12).log()).sum(-3)
        return 1 - entropy.mean((-2, -1)) / math.log(outputs.shape[-3])

    def harm(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The share of the pixels that are wrong, less a half."""
        logits = map_losses.resized(outputs, targets.shape[1:])
        known = targets != IGNORED
        own = logits.gather(1, targets.masked_fill(~known, 0)[:, None])[:, 0]
        # A soft step of width 0.1, so that it has a gradient.
        others = logits.scatter(1, targets.masked_fill(~known, 0)[:, None], float("-inf")).amax(1)
        wrong = torch.sigmoid((others - own) / 0.1) * known
        return wrong.flatten(1).sum(1) / known.flatten(1).sum(1).clamp_min(1) - 0.5

    def numbers(self, outputs: Tensor) -> Tensor:
        return outputs.float().softmax(1)

    def apart(self, first: Tensor, second: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """The class that each gives most of the pixels that the other gives another one, and their
        share."""
        said = first.argmax(1), map_losses.resized(second, first.shape[2:]).argmax(1)
        differ, classes = said[0] != said[1], first.shape[1]
        numbers = tuple(
            torch.stack([
                torch.bincount(one[at], minlength=classes).argmax()
                for one, at in zip(found, differ, strict=True)
            ])
            for found in said
        )  # fmt: skip
        return (numbers[0], numbers[1]), differ.float().mean((1, 2))

    def start(self, head: nn.Module) -> None:
        """A fresh head gives every class about the same."""


def fitted(targets: Array | None) -> TrainingTask:
    """The same for every data set."""
    return Segmentation()
