"""How to train, and what a stage is given besides the model: free of heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import nn

    from ..data.loader import Data
    from ..distillation.teaching import Teacher


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train. Stages that train inherit it and change the defaults."""

    epochs: int = 20
    """Passes over the training images."""
    batch_size: int = 64
    """Images in one step, over all processes together."""
    lr: float = 1e-3
    """Peak learning rate, reached after the warm-up."""
    schedule: Literal["cosine", "onecycle"] = "cosine"
    """Down to zero on a cosine, or one cycle: up over 30 % of the run, and down."""
    part: tuple[float, float] = (0.0, 1.0)
    """Which part of the schedule these epochs run through, where several stages share one."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.02
    """Applied to weights only, never to norms and biases."""
    momentum: float = 0.9
    """Of SGD, with Nesterov."""
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    clip_norm: float = 5.0
    """Largest gradient norm; 0 does not clip."""
    accumulate: int = 1
    """Steps whose gradients are added up before an update."""
    precision: Literal["no", "fp16", "bf16"] = "no"
    """Mixed precision of the forward pass."""
    ema_decay: float = 0.0
    """Exponential moving average of the weights, used for evaluation and kept; 0 is off."""
    patience: int = 0
    """Stop after so many epochs without a better validation accuracy; 0 never stops early."""
    freeze: Literal["none", "backbone", "head"] = "none"
    """Which part keeps its weights."""
    workers: int = 0
    """Processes that load images; 0 loads in the training process."""

    def __post_init__(self) -> None:
        from vcompress.bench.errors import UserError

        for name, value, least in (
            ("epochs", self.epochs, 0),
            ("batch_size", self.batch_size, 1),
            ("accumulate", self.accumulate, 1),
            ("lr", self.lr, 0.0),
            ("weight_decay", self.weight_decay, 0.0),
            ("warmup_epochs", self.warmup_epochs, 0.0),
            ("clip_norm", self.clip_norm, 0.0),
            ("patience", self.patience, 0),
            ("workers", self.workers, 0),
        ):
            if not value >= least:
                raise UserError(f"{name} = {value}: it must be {least} or more.")
        if not 0 <= self.part[0] < self.part[1] <= 1:
            raise UserError(f"part = {self.part}: two shares, the first below the second.")
        for name, share in (
            ("ema_decay", self.ema_decay),
            ("label_smoothing", self.label_smoothing),
            ("momentum", self.momentum),
        ):
            if not 0 <= share < 1:
                raise UserError(f"{name} = {share}: it must be at least 0 and below 1.")


@dataclass(frozen=True, kw_only=True)
class TaughtConfig(TrainConfig):
    """How to train under a teacher."""

    temperature: float = 4.0
    """Softens the outputs of student and teacher."""
    alpha: float = 0.7
    """Weight of the teacher (the network as it came, unless one is named) against the labels."""

    def __post_init__(self) -> None:
        from vcompress.bench.errors import UserError

        super().__post_init__()
        if not self.temperature > 0:
            raise UserError(
                f"temperature = {self.temperature}: it must be above 0 (2 to 4 is usual)."
            )
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha = {self.alpha}: it must be from 0 to 1.")


@dataclass(frozen=True)
class Context:
    """What a stage is given besides the model and its own options."""

    data: Data
    workdir: Path
    """Where a stage keeps what it needs to be resumed."""
    seed: int = 0
    resume: bool = False
    teacher: nn.Module | None = None
    """The float network to learn from, where the command or the bundle's history names one."""
    track: tuple[str, ...] = ()
    """Trackers of accelerate: tensorboard, wandb, mlflow."""
    teacher_name: str | None = None
    """Where the teacher lies, for the record."""
    teachers: tuple[Teacher, ...] = ()
    """Those of a stage that takes several, each with the inputs and the order of its classes."""
