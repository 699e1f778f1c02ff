"""The contract of a task's torch half: what a network is trained for.

A file of this folder has a frozen dataclass with these methods and `fitted(targets)`, which makes
one for the training targets of a data set. Every function is pure; shapes are `[B, K]` for the
network's outputs, `[B, K, h, w]` where the task has maps, and the targets are as `bench/data` has
them.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from vcompress.bench.tasks.task import Array, Task


class TrainingTask(Protocol):
    """The torch half of a task."""

    @property
    def deployed(self) -> Task:
        """The numpy half."""

    @property
    def distils(self) -> tuple[str, ...]:
        """Distillation losses that make sense of its outputs, as `distill --method` names them."""

    @property
    def mixes(self) -> bool:
        """Whether targets of two images can be mixed (MixUp, CutMix)."""

    @property
    def has_classes(self) -> bool:
        """Whether each image is of one class: balanced sampling and the focal loss need that."""

    @property
    def starts(self) -> bool:
        """Whether `start` does something, for which the head has to be found."""

    def tensor(self, targets: Array | Tensor) -> Tensor:
        """A batch's targets as the loss takes them."""

    def no_targets(self, outputs: Tensor) -> Tensor:
        """The targets of a batch without labels, for outputs `[B, K]`."""

    def loss(
        self,
        outputs: Tensor,
        targets: Tensor,
        label_smoothing: float = 0.0,
        labelled: float | None = None,
    ) -> dict[str, Tensor]:
        """Named parts whose sum is trained on, scalars: means over the batch.

        Args:
            targets: an image without a label has -1 (NaN among numbers) there.
            labelled: share of the training images that have a label. The sum over those of the
                batch is divided by what a batch has of them on average. None: all have one.
        """

    def soft(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """How far the student's outputs are from the teacher's, a scalar: a mean over the batch."""

    def distil(
        self, method: str, student: Tensor, teacher: Tensor, targets: Tensor, temperature: float
    ) -> Tensor:
        """The loss `method` on outputs, one of `distils`; a mean over the batch."""

    def mixture(self, outputs: Tensor, shares: Tensor, temperature: float) -> Tensor:
        """One teacher of several, `[B, K]`.

        Args:
            outputs: `[T, B, K]`.
            shares: `[T, B]`, of each teacher in each image; they sum to one.
        """

    def sureness(self, outputs: Tensor) -> Tensor:
        """How certain a network is of each image, 0 to 1, `[..., B]` for `[..., B, K]`."""

    def harm(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """How wrong each image is, `[B]`: above 0 where it counts as wrong, if there is such."""

    def numbers(self, outputs: Tensor) -> Tensor:
        """Probabilities or values, `[B, K]`, as `Task.numbers` has them."""

    def apart(self, first: Tensor, second: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Where two networks' outputs `[N, K]` disagree: for each the number of the output that
        says most about it, `[N]`, and how much they disagree, `[N]`; 0 where they agree."""

    def start(self, head: nn.Module) -> None:
        """Fit a fresh last layer to the targets' range, in place."""
