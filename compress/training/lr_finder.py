"""The learning-rate finder: a sweep that raises the rate with each step, until the loss blows up.

Smith: Cyclical Learning Rates for Training Neural Networks, WACV 2017, arXiv:1506.01186.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.bench.reports.svg import COLOURS, Plot

from ..data.loader import Data
from ..distillation.losses import total
from ..models.outputs import mean_loss
from ..tasks import training_task
from .config import TrainConfig
from .optimizer import optimizer_for
from .processes import process_state

_SMOOTHING = 0.9
_BLOWN_UP = 3.0
"""Times the smallest smoothed loss: the sweep ends there."""
_LEAST_STEPS = 10


@dataclass(frozen=True)
class Sweep:
    """The learning rate and the loss of each step that was taken."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    """Smoothed by a running average."""
    suggestion: float
    """Where the loss falls most steeply on the logarithm of the rate, before its minimum."""
    highest: float
    """Where the loss is least: above it training is unsteady."""
    stopped: bool
    """Whether the loss blew up before the last rate."""


def sweep(
    model: nn.Module, data: Data, config: TrainConfig, *, low: float, high: float, steps: int
) -> Sweep:
    """Train a copy of `model` for `steps` steps with rates from `low` to `high`, equally far apart
    on a logarithmic scale. `model` stays as it is.

    Raises:
        UserError: the loss is not finite at the lowest rates, or never falls.
    """
    if not 0 < low < high or steps < _LEAST_STEPS:
        raise UserError(
            f"low = {low:g}, high = {high:g}, steps = {steps}: expected 0 < low < high and at "
            f"least {_LEAST_STEPS} steps."
        )
    torch.manual_seed(data.seed)
    device, task = process_state().device, training_task(data.dataset)
    net = copy.deepcopy(model).to(device).train()
    optimizer = optimizer_for(net, config, [])
    rates: list[float] = []
    losses: list[float] = []
    average, least = 0.0, math.inf
    stopped = False
    batches = _endless(data, config)
    for step in range(steps):
        rate = low * (high / low) ** (step / (steps - 1))
        for group in optimizer.param_groups:
            group["lr"] = rate
        images, targets = next(batches)
        wanted = task.tensor(targets).to(device)
        loss = mean_loss(
            net(images.to(device)),
            lambda outputs: total(task.loss(outputs, wanted, config.label_smoothing)),  # noqa: B023
        )
        average = _SMOOTHING * average + (1 - _SMOOTHING) * float(loss.detach())
        smoothed = average / (1 - _SMOOTHING ** (step + 1))
        if not math.isfinite(smoothed) or smoothed > _BLOWN_UP * least:
            stopped = True
            break
        least = min(least, smoothed)
        rates.append(rate)
        losses.append(smoothed)
        torch.autograd.backward(loss)
        if config.clip_norm:
            torch.nn.utils.clip_grad_norm_(net.parameters(), config.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
    suggestion, highest = suggest(rates, losses)
    return Sweep(tuple(rates), tuple(losses), suggestion, highest, stopped)


def suggest(rates: Sequence[float], losses: Sequence[float]) -> tuple[float, float]:
    """The rate where the loss falls most steeply over the logarithm of the rate, and the one where
    it is least.

    Raises:
        UserError: it does not fall, so nothing can be suggested.
    """
    best = int(np.argmin(losses)) if losses else 0
    # The first losses are those of few batches: one alone may be low by chance.
    start = float(np.median(losses[: max(3, best // 2)])) if losses else 0.0
    if len(rates) < _LEAST_STEPS or best < 2 or losses[best] > 0.98 * start:
        raise UserError(
            "The loss does not fall at any of these rates, so none can be suggested. Give a lower "
            "--low or a higher --high, more --steps, or look at the data."
        )
    slopes = np.gradient(np.array(losses[: best + 1]), np.log(rates[: best + 1]))
    return float(rates[int(np.argmin(slopes))]), float(rates[best])


def plot(found: Sweep) -> str:
    """The smoothed loss over the logarithm of the rate, as SVG that stands alone."""
    x, y = np.log10(found.rates), np.array(found.losses)
    top = min(float(y.max()), 1.3 * float(y[0]))
    picture = Plot(
        (float(x[0]), float(x[-1])), (float(y.min()), top), "learning rate, power of ten",
        "smoothed loss", "loss over learning rate",
    )  # fmt: skip
    shown = y <= top
    picture.dots(x[shown], y[shown], COLOURS[0], radius=2.0)
    picture.down(math.log10(found.suggestion), COLOURS[1])
    picture.down(math.log10(found.highest), COLOURS[2])
    style = (
        "<style>text{font:11px sans-serif;fill:#5d6878}.grid{stroke:#dfe4ea}"
        "svg{background:#fff}</style>"
    )
    svg = picture.text().replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return svg.replace("</title>", f"</title>{style}", 1)


def _endless(data: Data, config: TrainConfig) -> Iterator[tuple[Tensor, Tensor]]:
    epoch = 0
    while True:
        yield from data.loader(
            "train", config.batch_size, train=True, epoch=epoch, workers=config.workers
        )
        epoch += 1
