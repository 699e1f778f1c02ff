"""A copy of a network takes one step before the training does: what it bears, and what it costs."""

from __future__ import annotations

import copy
import logging
import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.export.mixing import across_the_batch, mixed_layer
from vcompress.export.parity import rounds_activation

from ..data.loader import Data
from ..models.layout import against_channels_last, backward, lay_out

log = logging.getLogger(__name__)

IMAGES = 4
"""Number of images of the trial."""


@dataclass(frozen=True)
class Trial:
    """What came of it."""

    layout: torch.memory_format
    """The memory format that the network is trained in."""
    seconds: float
    """Time of one image forward and backward; NaN where the network did not take these images."""
    mixes: bool
    """Whether what it gives for an image depends on the batch, in evaluation too."""


def try_out(
    model: nn.Module, data: Data, name: str, autocast: AbstractContextManager[Any] | None = None
) -> tuple[Trial, nn.Module]:
    """Run a copy of `model`, which stays as it is, on a few training images; gives the copy too, as
    a pass in training has left it.

    Args:
        name: says in the log what is trained.
        autocast: mixed precision, where the training has it.
    """
    images: Tensor = next(iter(data.loader("train", IMAGES)))[0]
    network = copy.deepcopy(model)
    layout = torch.contiguous_format
    with torch.random.fork_rng(devices=[]), autocast or nullcontext():
        against = against_channels_last(network, images, rounds=autocast is not None)
        if against is None:
            layout = torch.channels_last
        elif against:
            log.info("%s: trained in contiguous memory; in channels_last %s", name, against)
        lay_out(network, layout)
        network.train()
        started = time.perf_counter()
        try:
            backward(network, images.contiguous(memory_format=layout))
            seconds = (time.perf_counter() - started) / len(images)
        except Exception as error:  # the batch may be too small; else the first step says why
            if "modified by an inplace operation" in str(error):
                raise _overwritten(error) from error
            seconds = math.nan
        else:
            _check_learns(network)
        network.zero_grad()
        lay_out(network, torch.contiguous_format)
        mixes = _mixes(network, images, rounds=autocast is not None)
    return Trial(layout, seconds, mixes), network


def _check_learns(network: nn.Module) -> None:
    learns = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if learns and all(parameter.grad is None for parameter in learns):
        raise UserError(
            "the network cannot be trained: what it gives depends on none of its weights by "
            "operations that gradients follow. Look for detach(), no_grad(), numpy or .data in its "
            "forward pass."
        )


def _overwritten(error: Exception) -> UserError:
    return UserError(
        "the network cannot be trained: its forward pass changes a tensor in place (an inplace "
        "operation: a name that ends in _, x += y, x[i] = y) whose earlier value the gradient "
        "needs. Make a new tensor there, such as x = x * y. torch.autograd.set_detect_anomaly(True)"
        f" shows the line. Torch said: {str(error)[:160]}"
    )


def _mixes(network: nn.Module, images: Tensor, rounds: bool) -> bool:
    """The log names the layer."""
    rounds = rounds or any(map(rounds_activation, network.modules()))
    try:
        layer = mixed_layer(network, images, rounds)
    except Exception:  # it does not take these images, and training says why
        return False
    if layer is not None:
        log.warning(across_the_batch(layer))
    return layer is not None
