"""AdaRound: rounds each weight up or down so that the layer's output is near, not the weight.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (2020),
arXiv:2004.10568, layer by layer with asymmetric reconstruction: the layer reads what the quantised
layers before it make and is held against the float layer's output. Each weight has one number; its
rectified sigmoid says how far up the weight goes, and a penalty drives it to 0 or 1. The steps of
the weights stay, and afterwards each weight lies on its step, so the rest of the network does not
change.

The output is compared in a sample of places. There a convolution is a matrix product of patches,
which costs the same at any image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .quantizers import WeightQuantizer, weight_of
from .trace import SameConv2d, pad_same
from .walk import Site, walk

STRETCH = (-0.1, 1.1)
"""The sigmoid reaches past 0 and 1 and is clipped there, as in the paper."""
PLACES = 4096
"""Number of places of the layer's output that are compared."""
BATCH = 128
PENALTY = 0.01
BETA = (20.0, 2.0)
WARMUP = 0.2
"""Share of the steps without the penalty."""


@dataclass(frozen=True)
class LayerError:
    """Mean squared error of a layer's output, over the mean square of the output."""

    nearest: float
    """With every weight rounded to the nearest."""
    chosen: float


def adaround(
    model: fx.GraphModule, images: Sequence[Tensor], *, steps: int = 300, lr: float = 0.1
) -> dict[str, LayerError]:
    """Choose the rounding of every weight of a calibrated network, in place.

    Args:
        images: batches [B, C, H, W] float32.
        steps: of Adam, for each layer.

    Returns:
        Layer -> its error. A layer whose error did not fall keeps the nearest rounding; transposed
        convolutions and such that pad with other values than zero are left out.
    """
    generator = torch.Generator().manual_seed(0)
    found: dict[str, LayerError] = {}

    def mend(site: Site) -> None:
        pair = weight_of(site.layer)
        sample = _sample(site, generator)
        if pair is None or sample is None:
            return
        weight, quantizer = pair
        with torch.enable_grad():
            found[site.name] = _mend(weight, quantizer, *sample, steps, lr, generator)

    walk(model, images, mend)
    return found


def _mend(
    weight: Tensor, quantizer: WeightQuantizer, patches: Tensor, wanted: Tensor, steps: int,
    lr: float, generator: torch.Generator,
) -> LayerError:  # fmt: skip
    """Change `weight` in place. `patches` [P, G, K], `wanted` [P, G, O / G] (less the bias)."""
    groups = patches.shape[1]
    rows = weight.detach().reshape(groups, -1, patches.shape[2])  # [G, O / G, K]
    scale = quantizer.scale().view(groups, -1, 1)
    low = torch.floor(rows / scale)
    share = (rows / scale - low).clamp(0.01, 0.99)
    start = (share - STRETCH[0]) / (STRETCH[1] - STRETCH[0])
    logits = torch.log(start / (1 - start)).requires_grad_()
    nearest = torch.round(rows / scale).clamp(-quantizer.high, quantizer.high) * scale
    power = wanted.square().mean().clamp_min(1e-12)
    optimizer = torch.optim.Adam([logits], lr)

    def up() -> Tensor:
        return (torch.sigmoid(logits) * (STRETCH[1] - STRETCH[0]) + STRETCH[0]).clamp(0, 1)

    for step in range(steps):
        at = torch.randint(len(patches), (min(BATCH, len(patches)),), generator=generator)
        at = at.to(patches.device)
        h = up()
        rounded = (low + h).clamp(-quantizer.high, quantizer.high) * scale
        error = (_product(patches[at], rounded) - wanted[at]).square().sum((1, 2)).mean()
        loss = error / (power * wanted.shape[1] * wanted.shape[2])
        done = (step / steps - WARMUP) / (1 - WARMUP)
        if done > 0:
            beta = BETA[0] + (BETA[1] - BETA[0]) * done
            penalty = (1 - (2 * h - 1).abs().pow(beta)).mean()
            loss = loss + PENALTY * penalty
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        chosen = (low + (up() > 0.5)).clamp(-quantizer.high, quantizer.high) * scale
        errors = [
            float((_product(patches, w) - wanted).square().mean() / power)
            for w in (nearest, chosen)
        ]
        best = chosen if errors[1] < errors[0] else nearest
        weight.detach().copy_(best.reshape(weight.shape))
    return LayerError(errors[0], min(errors))


def _product(patches: Tensor, rows: Tensor) -> Tensor:
    """[P, G, K] times [G, O / G, K] gives [P, G, O / G]."""
    return torch.einsum("pgk,gok->pgo", patches, rows)


def _sample(site: Site, generator: torch.Generator) -> tuple[Tensor, Tensor] | None:
    """Patches [P, G, K] of the quantised input and what the float layer makes there [P, G, O/G]."""
    layer = site.layer
    count = sum(len(x) for x in site.quantised_inputs)
    each = max(1, PLACES // count)
    patches: list[Tensor] = []
    wanted: list[Tensor] = []
    groups = 1
    if isinstance(layer, nn.Linear):
        for x, y in zip(site.quantised_inputs, site.float_outputs, strict=True):
            rows, made = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
            at = _places(len(rows), each * len(x), generator, x.device)
            patches.append(rows[at][:, None])
            wanted.append(made[at][:, None])
    elif isinstance(layer, nn.Conv2d):
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            return None
        groups = layer.groups
        for x, y in zip(site.quantised_inputs, site.float_outputs, strict=True):
            x = pad_same(x, layer) if isinstance(layer, SameConv2d) else x
            for image, made in zip(x, y, strict=True):
                columns = F.unfold(
                    image[None], layer.kernel_size, layer.dilation, layer.padding, layer.stride
                )[0]  # [C * kh * kw, L]
                at = _places(columns.shape[1], each, generator, x.device)
                patches.append(columns[:, at].T.reshape(len(at), groups, -1))
                wanted.append(made.flatten(1)[:, at].T.reshape(len(at), groups, -1))
    else:
        return None
    bias = layer.bias
    target = torch.cat(wanted)
    if bias is not None:
        target = target - bias.detach().view(1, groups, -1)
    return torch.cat(patches), target


def _places(
    available: int, wanted: int, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Indices without repetition, as many as there are at most."""
    return torch.randperm(available, generator=generator)[:wanted].to(device)
