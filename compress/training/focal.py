"""Focal loss, for classes that are rare or hard."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vcompress.bench.data.dataset import IGNORED


def focal(logits: Tensor, labels: Tensor, gamma: float, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy in which what is already right counts less: the mean over the batch of the sum
    over the classes of `-t * (1 - p) ** gamma * log(p)`. With `gamma` 0 it is cross entropy.

    Args:
        logits: `[B, K]`.
        labels: `[B] int64`, or `[B, K] float32` that sum to one.
        gamma: 0 or more; 2 is the paper's.

    Lin et al.: Focal Loss for Dense Object Detection, ICCV 2017, arXiv:1708.02002, without the
    weights of the classes: balanced sampling does their work.
    """
    classes = logits.shape[1]
    target = F.one_hot(labels, classes).to(logits.dtype) if labels.ndim == 1 else labels
    target = target * (1 - label_smoothing) + label_smoothing / classes
    log_p = F.log_softmax(logits, dim=1)
    # Below a gamma of 1 the slope of a power has no bound at zero.
    wrong = (1 - log_p.exp()).clamp_min(1e-7)
    return -(target * wrong**gamma * log_p).sum(1).mean()


def focal_of_pixels(
    logits: Tensor, masks: Tensor, gamma: float, label_smoothing: float = 0.0,
    weights: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Cross entropy of each pixel that has a class, in which what is already right counts less: the
    mean, weighted by the classes.

    Args:
        logits: `[B, K, H, W]`.
        masks: `[B, H, W] int64`.
        weights: `[K]`, of the classes; all alike by default.
    """
    known = masks != IGNORED
    each = F.cross_entropy(
        logits, masks, ignore_index=IGNORED, reduction="none", label_smoothing=label_smoothing
    )
    labels = masks.masked_fill(~known, 0)
    share = known.to(logits.dtype) if weights is None else weights[labels] * known
    if gamma:
        p = logits.softmax(1).gather(1, labels[:, None])[:, 0]
        each = each * (1 - p).clamp_min(1e-7) ** gamma
    return (each * share).sum() / share.sum().clamp_min(1e-6)
