"""Options of training, and the context of a stage; free of heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vcompress.bench.errors import UserError
from vcompress.bench.ranges import above, at_least, check_ranges, share

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from ..data.loader import Data
    from ..distillation.teaching import Teacher


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train. Stages that train inherit it and change the defaults."""

    epochs: Annotated[int, at_least(0)] = 20
    """Number of passes over the training images, 0 or more."""
    batch_size: Annotated[int, at_least(1)] = 64
    """Images in one step, over all processes together; 1 or more."""
    lr: Annotated[float, at_least(0)] = 1e-3
    """Peak learning rate, 0 or more, reached after the warm-up."""
    schedule: Literal["cosine", "onecycle"] = "cosine"
    """Schedule of the learning rate. cosine: decay to zero; onecycle: rise for 30 %, then decay."""
    part: Annotated[tuple[float, float], tyro.conf.Fixed, tyro.conf.Suppress] = (0.0, 1.0)
    """Part of the schedule that these epochs run through, two shares from 0 to 1, where several
    stages share one schedule. No flag: the [joint] of a recipe sets it."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Optimiser: AdamW or stochastic gradient descent."""
    weight_decay: Annotated[float, at_least(0)] = 0.02
    """Weight decay, 0 or more, of weights only, never of norms and biases."""
    momentum: Annotated[float, share(one=False)] = 0.9
    """Nesterov momentum (SGD only), from 0 to below 1."""
    warmup_epochs: Annotated[float, at_least(0)] = 1.0
    """Length of the linear warm-up of the learning rate, epochs, 0 or more."""
    label_smoothing: Annotated[float, share(one=False)] = 0.0
    """Share of each label that is spread over all classes, from 0 to below 1."""
    clip_norm: Annotated[float, at_least(0)] = 5.0
    """Largest norm of the gradient, 0 or more; 0 does not clip."""
    accumulate: Annotated[int, at_least(1)] = 1
    """Number of steps whose gradients are added up before an update, 1 or more."""
    precision: Literal["no", "fp16", "bf16"] = "no"
    """Mixed precision of the forward pass; no stays in float32."""
    ema_decay: Annotated[float, share(one=False)] = 0.0
    """Decay of the exponential moving average (EMA) of the weights, from 0 to below 1. The average
    is what is evaluated and kept; 0 is off."""
    patience: Annotated[int, at_least(0)] = 0
    """Number of epochs without a better validation accuracy after which training stops; 0 never
    stops early."""
    freeze: Literal["none", "backbone", "head"] = "none"
    """Part of the network that keeps its weights."""
    workers: Annotated[int, at_least(0)] = 0
    """Number of processes that load images; 0 loads in the training process."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not 0 <= self.part[0] < self.part[1] <= 1:
            raise UserError(f"part = {self.part}: two shares, the first below the second.")


@dataclass(frozen=True, kw_only=True)
class TaughtConfig(TrainConfig):
    """How to train under a teacher."""

    temperature: Annotated[float, above(0)] = 4.0
    """Temperature of the softmax of student and teacher, above 0; 2 to 4 is usual."""
    alpha: Annotated[float, share()] = 0.7
    """Weight of the distillation loss against the label loss, from 0 to 1."""


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
    threads: int = 1
    """Number of threads that latencies are measured with."""
    measure_first: Callable[[str], None] | None = None
    """Measures the unchanged network in the runtime of a target of quantisation, so that the
    changed one is held against it. `apply` calls it once nothing cheap can fail any more."""
    rehearse: Callable[[nn.Module, float], None] | None = None
    """Tries what comes after the training on a copy of the network, given the seconds that the
    training will take. `fit` calls it before the first epoch."""
