"""Statistics of batch norms, estimated again for a network whose weights have changed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vcompress.export.modes import evaluating

BATCHES = 16
"""Batches of training images for criteria on gradients and for the statistics of batch norms."""
LEAST_BATCH = 16
"""Least number of images in a batch that the statistics of batch norms are taken over."""


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> int:
    """Set each batch norm's running mean and variance to their averages over `batches`.

    A network that lost channels keeps the statistics of the whole one, and is at chance with them
    before any training. Labels are not used. Modes, momenta and everything else stay as they were;
    nothing is done to a network without running statistics, or where no batch has two images.

    Args:
        batches: images [B, C, H, W] with what the loader gives beside them. An image alone is
            passed over.

    Returns:
        the number of batch norms that were estimated.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    device = next(model.parameters()).device
    momenta = [norm.momentum for norm in norms]
    fresh = False
    with evaluating(model):
        try:
            for images, *_ in batches:
                if len(images) < 2:  # one image has no variance where a map is one pixel
                    continue
                if not fresh:
                    for norm in norms:
                        norm.reset_running_stats()
                        norm.momentum = None  # the plain average of all batches
                        norm.train()
                    fresh = True
                model(images.to(device))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    return len(norms) if fresh else 0
