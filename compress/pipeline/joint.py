"""One budget of epochs for distillation, pruning and quantisation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vcompress.bench.errors import UserError


@dataclass(frozen=True)
class Joint:
    """One budget of epochs and one learning-rate schedule: a student is distilled, pruned in steps
    and quantised under the same teacher. It is three stages, each of which can be resumed."""

    student: str
    """Name of the network that is made small, or a bundle."""
    distill: dict[str, Any] = field(default_factory=dict)
    """Further options of the distillation, as in [[stages]]; those of the two others likewise."""
    prune: dict[str, Any] = field(default_factory=dict)
    quantize: dict[str, Any] = field(default_factory=dict)
    teacher: str | None = None
    """Name or bundle of the teacher. Default: the stage before."""
    epochs: int = 20
    """Number of passes over the training images, of the three together, 1 or more."""
    lr: float = 1e-3
    """Peak learning rate, 0 or more."""
    shares: tuple[float, float, float] = (0.5, 0.3, 0.2)
    """Shares of the epochs for distillation, pruning and quantisation; they add up to 1."""
    steps: int = 3
    """Number of steps of the pruning, 1 or more."""

    def tables(self, teacher: str) -> list[dict[str, Any]]:
        """The three as [[stages]] have them.

        Raises:
            UserError: a budget that cannot be divided.
        """
        if len(self.shares) != 3 or min(self.shares) <= 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise UserError(f"joint: shares = {list(self.shares)}; three that add up to 1.")
        first = round(self.epochs * self.shares[0])
        second = round(self.epochs * (self.shares[0] + self.shares[1]))
        each = (second - first) // max(1, self.steps)
        if self.steps < 1 or min(first, each, self.epochs - second) < 1:
            raise UserError(
                f"joint: epochs = {self.epochs} with shares {list(self.shares)} and steps = "
                f"{self.steps} leaves a part without an epoch; give more epochs or fewer steps."
            )
        # The same warm-up for all: it is over before the second part, and bends the whole cosine.
        whole = {"lr": self.lr, "warmup_epochs": 1.0, "teacher": teacher}
        return [
            {
                "stage": "distill", "name": "joint-distill", **whole, "student": self.student,
                "epochs": first, "part": [0.0, first / self.epochs], **self.distill,
            },
            {
                "stage": "prune", "name": "joint-prune", **whole, "steps": self.steps,
                "step_epochs": each, "epochs": second - first - each * (self.steps - 1),
                "part": [first / self.epochs, second / self.epochs], **self.prune,
            },
            {
                "stage": "quantize", "name": "joint-quantize", **whole,
                "epochs": self.epochs - second, "part": [second / self.epochs, 1.0],
                **self.quantize,
            },
        ]  # fmt: skip
