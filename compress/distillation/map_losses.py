"""Losses on maps of logits `[B, K, h, w]`, a prediction for each place; docstrings give the papers.

Student and teacher may have other strides: the teacher's map is brought to the student's size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from vcompress.bench.data.dataset import IGNORED

from . import losses
from .losses import check_logits


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """`[B, K, h, w]` as `[B, K, *size]`, bilinear, as the logits are resized where they ship."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def on_logits(method: str, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The loss `method` of two maps: `cwd`, or `kd`, `lskd` and `dist` of the single places, which
    are a batch of their own: `dist` then correlates each class over all of them, as its paper does
    for segmentation."""
    teacher = resized(teacher, student.shape[2:])
    if method == "cwd":
        return cwd(student, teacher, temperature)
    loss = {"kd": losses.kd, "lskd": losses.lskd, "dist": losses.dist}[method]
    return loss(places(student), places(teacher), temperature)


def cwd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of each class's map, which a softmax over its places makes a
    distribution; the mean over classes and batch, times `temperature` squared.

    The student learns where the teacher is sure of a class, and not how sure.

    Shu et al.: Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021,
    arXiv:2011.13256.
    """
    check_logits(student, teacher, temperature)
    s, t = (
        F.log_softmax(maps.flatten(2) / temperature, dim=2).flatten(0, 1)
        for maps in (student, teacher)
    )
    return F.kl_div(s, t, reduction="batchmean", log_target=True) * temperature**2


def dice(logits: Tensor, masks: Tensor) -> Tensor:
    """One minus the Dice coefficient of probabilities and mask, the mean over the classes that the
    batch has; from 0 to 1.

    Args:
        logits: `[B, K, H, W]`.
        masks: `[B, H, W] int64`; what is `IGNORED` does not count.

    Milletari, Navab, Ahmadi: V-Net, 2016, arXiv:1606.04797, with the sums over the whole batch.
    """
    known = masks != IGNORED
    wanted = F.one_hot(masks.masked_fill(~known, 0), logits.shape[1]).movedim(3, 1)
    wanted = wanted.to(logits.dtype) * known[:, None]
    p = logits.softmax(1) * known[:, None]
    both, each = (p * wanted).sum((0, 2, 3)), (p + wanted).sum((0, 2, 3))
    present = wanted.sum((0, 2, 3)) > 0
    shares = (1 - 2 * both / each.clamp_min(1e-6)) * present
    return shares.sum() / present.sum().clamp_min(1)


def places(maps: Tensor) -> Tensor:
    """`[B, K, h, w]` as `[B h w, K]`."""
    return maps.movedim(1, 3).flatten(0, 2)
