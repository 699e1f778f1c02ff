"""Regression, one or more numbers an image: smooth L1 in units of the targets' spread."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.bench.tasks import regression
from vcompress.bench.tasks.task import Array, Task

from .task import TrainingTask


@dataclass(frozen=True)
class Regression:
    """Targets `[B, K] float32` in their own unit, which is the network's too; NaN has no target.

    Losses are in units of the standard deviation of the training targets, so that one learning
    rate suits metres and millimetres.
    """

    centre: tuple[float, ...]
    spread: tuple[float, ...]
    deployed: Task = regression.TASK
    distils: tuple[str, ...] = ("kd", "fitnet", "at", "srd", "self")
    mixes: bool = False
    has_classes: bool = False
    starts: bool = True

    def tensor(self, targets: Array | Tensor) -> Tensor:
        return torch.as_tensor(targets, dtype=torch.float32)

    def no_targets(self, outputs: Tensor) -> Tensor:
        return torch.full_like(outputs, float("nan"))

    def loss(
        self,
        outputs: Tensor,
        targets: Tensor,
        label_smoothing: float = 0.0,
        labelled: float | None = None,
    ) -> dict[str, Tensor]:
        """Smooth L1, summed over the outputs. There is nothing to smooth in a number."""
        known = ~targets.isnan().any(1)
        each = self._distance(outputs, torch.where(known[:, None], targets, outputs.detach()))
        share = 1.0 if labelled is None else labelled
        return {"smooth_l1": each.sum() / (len(targets) * share)}

    def soft(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Smooth L1 to the teacher's numbers; `temperature` has nothing to soften."""
        return self._distance(student, teacher).mean()

    def distil(
        self, method: str, student: Tensor, teacher: Tensor, targets: Tensor, temperature: float
    ) -> Tensor:
        return self.soft(student, teacher, temperature)

    def mixture(self, outputs: Tensor, shares: Tensor, temperature: float) -> Tensor:
        """The weighted mean."""
        return (outputs * shares[:, :, None]).sum(0)

    def sureness(self, outputs: Tensor) -> Tensor:
        """All the same: a number does not say how certain it is."""
        return torch.ones_like(outputs[..., 0])

    def harm(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The error, in spreads of the targets."""
        return (self._in_spreads(outputs) - self._in_spreads(targets)).abs().sum(1)

    def numbers(self, outputs: Tensor) -> Tensor:
        return outputs.float()

    def apart(self, first: Tensor, second: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """The number that differs most, where it does by more than a tenth of the spread."""
        distance = (self._in_spreads(first) - self._in_spreads(second)).abs()
        number = distance.argmax(1)
        farthest = distance.amax(1)
        return (number, number), torch.where(farthest > 0.1, farthest, 0.0)

    def start(self, head: nn.Module) -> None:
        """Begin at the targets' mean with their spread: a head that has to grow to it first would
        take most of the training for that."""
        weight, bias = getattr(head, "weight", None), getattr(head, "bias", None)
        if not isinstance(weight, Tensor) or len(weight) != len(self.centre):
            return
        with torch.no_grad():
            spread = torch.tensor(self.spread, dtype=weight.dtype)
            weight.mul_(spread.view(-1, *[1] * (weight.ndim - 1)))
            if isinstance(bias, Tensor):
                bias.mul_(spread).add_(torch.tensor(self.centre, dtype=bias.dtype))

    def _distance(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.smooth_l1_loss(
            self._in_spreads(outputs), self._in_spreads(targets), reduction="none"
        ).sum(1)

    def _in_spreads(self, values: Tensor) -> Tensor:
        return values / torch.tensor(self.spread, device=values.device, dtype=values.dtype)


def fitted(targets: Array | None) -> TrainingTask:
    """For training targets `[N, K]`.

    Raises:
        UserError: there are none.
    """
    if targets is None:
        raise UserError(
            "regression: give the training targets too; their spread is the unit of its losses."
        )
    spread = np.nanstd(targets, axis=0)
    spread[~(spread > 0)] = 1.0  # a number that never changes has no unit of its own
    centre = np.nanmean(targets, axis=0)
    return Regression(tuple(map(float, centre)), tuple(map(float, spread)))
