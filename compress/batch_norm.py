"""Statistics of batch norms, estimated again for a network whose weights have changed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> int:
    """Set each batch norm's running mean and variance to their averages over `batches`.

    A network that lost channels keeps the statistics of the whole one, and is at chance with them
    before any training. Labels are not used. Modes, momenta and everything else stay as they were;
    nothing is done to a network without running statistics.

    Args:
        batches: images [B, C, H, W] with what the loader gives beside them; two images or more.

    Returns:
        the number of batch norms.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    device = next(model.parameters()).device
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average of all batches
        norm.train()
    try:
        for images, *_ in batches:
            if len(images) > 1:  # one image has no variance where a map is one pixel
                model(images.to(device))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    return len(norms)
