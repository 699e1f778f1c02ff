"""Focal loss, for classes that are rare or hard."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


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
