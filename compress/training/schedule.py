"""The schedule of the learning rate, a function of the step: a resumed run needs no state of it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypeVar

from .config import TrainConfig

C = TypeVar("C", bound=TrainConfig)

ONECYCLE_FIRST, ONECYCLE_LAST = 1 / 25, 1 / 25 / 1e4
"""Shares of the peak at both ends, and where the peak is by default: as in torch's OneCycleLR."""
ONECYCLE_RISE = 0.3


def within(config: C, before: int, total: int) -> C:
    """`config` with the part of its part that its epochs are, after `before` of `total` others."""
    start, end = config.part
    if total == 0 or (start, end) == (0.0, 1.0):
        return config
    first, last = before / total, (before + config.epochs) / total
    span = end - start
    return replace(config, part=(start + span * first, min(end, start + span * last)))


def share_of_peak(step: float, steps: int, config: TrainConfig) -> float:
    """What share of the peak rate `step` (from 0, over all epochs) gets, 0 to 1.

    `cosine` warms up in a line over `warmup_epochs` and falls to zero on a cosine (SGDR,
    arXiv:1608.03983). `onecycle` rises on a cosine over the first 30 % of the run, or over
    `warmup_epochs` where they are longer, and falls on another one far below its start (Smith and
    Topin: Super-Convergence, arXiv:1708.07120).

    Args:
        steps: in one epoch.
    """
    start, end = config.part
    whole = config.epochs * steps / (end - start)
    step = step + start * whole
    warmup = config.warmup_epochs * steps
    if config.schedule == "onecycle":
        top = max(1.0, warmup, ONECYCLE_RISE * whole - 1)
        if step <= top:
            return _cosine(ONECYCLE_FIRST, 1.0, step / top)
        return _cosine(1.0, ONECYCLE_LAST, (step - top) / max(1.0, whole - 1 - top))
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return _cosine(1.0, 0.0, (step - warmup) / max(1.0, whole - warmup))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
