"""Empirical bias correction: takes back the shift of a layer's mean output that rounding makes.

Nagel et al., "Data-free quantization through weight equalization and bias correction" (2019),
arXiv:1906.04721, section 4.2 with means from images. The error of a rounded weight times an input
whose mean is not zero (any tensor behind a ReLU) has a mean of its own for each channel, worst
where a channel sums over few weights, as in depthwise convolutions. It is subtracted from the bias,
or added to the running mean of the BN behind the layer, layer by layer, each with the layers before
it mended.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, fx, nn

from .walk import Site, walk


def correct_bias(model: fx.GraphModule, images: Sequence[Tensor]) -> dict[str, float]:
    """Mend a calibrated network in place.

    Args:
        images: batches [B, C, H, W] float32.

    Returns:
        Layer -> the largest shift of a channel's mean, in standard deviations of that channel.
        Layers with neither a bias nor a BN are left as they are and are not in it.
    """
    shifts: dict[str, float] = {}

    def mend(site: Site) -> None:
        bias = getattr(site.layer, "bias", None)
        norm = site.bn if site.bn is not None and site.bn.running_mean is not None else None
        if not isinstance(bias, Tensor) and norm is None:
            return
        axis = -1 if isinstance(site.layer, nn.Linear) else 1
        mean = _mean(site.float_outputs, axis)
        shift = _mean((site.layer(x) for x in site.quantised_inputs), axis) - mean
        spread = _mean((x.square() for x in site.float_outputs), axis) - mean.square()
        if norm is not None:
            assert norm.running_mean is not None
            norm.running_mean.add_(shift.to(norm.running_mean.dtype))
        else:
            assert isinstance(bias, Tensor)
            bias.sub_(shift.to(bias.dtype))
        deviation = spread.clamp_min(0).sqrt().clamp_min(1e-9)
        shifts[site.name] = float((shift.abs() / deviation).max())

    walk(model, images, mend)
    return shifts


def _mean(batches: Iterable[Tensor], axis: int) -> Tensor:
    """Mean of each channel, [C] float64; one batch is held at a time."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for batch in batches:
        others = [d for d in range(batch.dim()) if d != axis % batch.dim()]
        total = total.to(batch.device) + batch.sum(others, dtype=torch.float64)
        count += batch.numel() // batch.shape[axis]
    return total / count
