"""Observers: a step and a zero point from the values of calibration. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vcompress.bench.errors import UserError, nearest

PER_IMAGE, LEAST = 1 << 8, 1 << 12
"""Values kept of each image of a batch, and of a batch at least, evenly spaced; the extremes are
kept exactly."""


class Observer:
    """Keeps a sample of the values of one tensor, and its extremes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.low, self.high, self.samples = 0.0, 0.0, list[Tensor]()

    def update(self, x: Tensor) -> None:
        """Look at one batch of values of any shape.

        Raises:
            UserError: a value is not finite.
        """
        flat = x.detach().reshape(-1)
        low, high = (float(v) for v in torch.aminmax(flat))
        if not (abs(low) < float("inf") and abs(high) < float("inf")):  # NaN fails as well
            raise UserError(
                f"calibration: the tensor {self.name!r} has values that are not finite "
                f"(smallest {low}, largest {high}). Check the calibration images and the weights."
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        # With a factor in common, the stride would see the same places of rows and channels only.
        count = max(PER_IMAGE * len(x) if x.dim() else 1, LEAST)
        stride = max(1, flat.numel() // count)
        while math.gcd(stride, flat.numel()) > 1:
            stride += 1
        self.samples.append(flat[::stride].float().cpu())

    def values(self) -> Tensor:
        """[N] float32: the sample, with the extremes."""
        return torch.cat([*self.samples, torch.tensor([self.low, self.high])])


def minmax(values: Tensor, levels: int, symmetric: bool) -> tuple[float, float]:
    """The whole range."""
    return min(float(values.min()), 0.0), max(float(values.max()), 0.0)


def percentile(
    values: Tensor, levels: int, symmetric: bool, share: float = 0.9999
) -> tuple[float, float]:
    """The range that leaves out a share of 0.0001 of the values at each end."""
    ordered = values.sort().values
    last = ordered.numel() - 1
    low, high = ordered[round((1 - share) * last)], ordered[round(share * last)]
    return min(float(low), 0.0), max(float(high), 0.0)


def mse(values: Tensor, levels: int, symmetric: bool, tries: int = 60) -> tuple[float, float]:
    """The share of the whole range with the least squared error of rounding and clipping."""
    low, high = minmax(values, levels, symmetric)
    if symmetric:
        reach = max(-low, high)
        low, high = -reach, reach
    if high <= low:
        return low, high
    best = (float("inf"), low, high)
    for step in range(tries):
        share = 1.0 - step / tries * 0.9
        scale = (high - low) * share / levels
        zero = round(-low * share / scale)
        rounded = (values / scale).round_().clamp_(-zero, levels - zero).mul_(scale)
        error = float(rounded.sub_(values).square_().sum(dtype=torch.float64))
        if error < best[0]:
            best = (error, low * share, high * share)
    return best[1], best[2]


def entropy(values: Tensor, levels: int, symmetric: bool, bins: int = 2048) -> tuple[float, float]:
    """The range with the least Kullback-Leibler divergence between values and rounded values.

    Migacz, "8-bit inference with TensorRT" (2017): a histogram is clipped at a threshold, its
    mass folded into `levels` steps, and compared with the clipped histogram.
    """
    low, high = minmax(values, levels, symmetric)
    reach = max(-low, high)
    if reach <= 0:
        return low, high
    magnitude = values.abs()
    magnitude = magnitude[magnitude > 0]  # the spike at zero of a ReLU costs nothing in any range
    steps = (levels + 1) // 2 if low < 0 else levels
    histogram = torch.histc(magnitude, bins, 0.0, reach).double()
    tail = histogram.flip(0).cumsum(0).flip(0)
    best = (float("inf"), bins)
    for width in range(min(steps, bins), bins + 1, 16):
        reference = histogram[:width].clone()
        if width < bins:
            reference[-1] += tail[width]
        inside = histogram[:width]
        group = torch.arange(width) * steps // width
        mass = torch.zeros(steps, dtype=torch.float64).index_add_(0, group, inside)
        filled = torch.zeros(steps, dtype=torch.float64).index_add_(0, group, (inside > 0).double())
        candidate = torch.where(inside > 0, (mass / filled.clamp_min(1))[group], 0.0)
        p, q = reference / reference.sum(), candidate / candidate.sum().clamp_min(1e-12)
        seen = p > 0
        divergence = float((p[seen] * (p[seen] / q[seen].clamp_min(1e-9)).log()).sum())
        if divergence < best[0]:
            best = (divergence, width)
    share = best[1] / bins
    return max(low, -reach * share), min(high, reach * share)


_OBSERVERS: dict[str, Callable[[Tensor, int, bool], tuple[float, float]]] = {
    "mse": mse,
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
}


def find_range(values: Tensor, observer: str, levels: int, symmetric: bool) -> tuple[float, float]:
    """(low, high) with low <= 0 <= high, by the method named `observer`.

    Raises:
        UserError: there is no such observer.
    """
    if observer not in _OBSERVERS:
        raise UserError(
            f"observer {observer!r}: expected one of {', '.join(sorted(_OBSERVERS))}."
            + nearest(observer, _OBSERVERS)
        )
    return _OBSERVERS[observer](values, levels, symmetric)


def weight_scale(weight: Tensor, axis: int, high: int) -> Tensor:
    """[channels]: the step of each slice along `axis`.

    At 7 bits and more the whole range; below, the share of it with the least squared error. A
    slice of zeros takes the median step of the others, so that its bias fits 32 bits.
    """
    rows = weight.detach().float().transpose(0, axis).flatten(1)
    reach = rows.abs().amax(1)
    scale = reach / high
    if high < 63:
        best = torch.full_like(scale, float("inf"))
        chosen = scale.clone()
        for step in range(40):
            tried = (scale * (1.0 - step / 50)).clamp_min(1e-12)[:, None]
            rounded = (rows / tried).round_().clamp_(-high, high).mul_(tried)
            error = rounded.sub_(rows).square_().sum(1)
            better = error < best
            best = torch.where(better, error, best)
            chosen = torch.where(better, tried[:, 0], chosen)
        scale = chosen
    alive = reach > 0
    typical = scale[alive].median() if bool(alive.any()) else scale.new_tensor(1.0 / high)
    # A slice far below the others is no better off with a step of its own.
    return torch.where(alive, scale, typical).maximum(typical * 2.0**-20)
