"""Losses on features as pure functions; each docstring gives shapes, scale and paper.

A feature map is `[B, C, H, W]`, an embedding `[B, D]`. The caller detaches the teacher's tensors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vcompress.bench.errors import UserError


def fitnet(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of two feature maps `[B, C, H, W]` over the squared norm of the teacher's,
    averaged over the batch: 0 at equality, 1 for a student of zeros.

    The paper's hint loss is half the squared distance; dividing by the norm makes a weight mean the
    same for every layer and network.

    Romero et al.: FitNets: Hints for Thin Deep Nets, ICLR 2015, arXiv:1412.6550.
    """
    _same(student, teacher)
    distance = (student - teacher).square().flatten(1).sum(1)
    return (distance / teacher.square().flatten(1).sum(1).clamp_min(1e-6)).mean()


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the two attention maps, averaged over the batch: from 0 to 2.

    The map of `[B, C, H, W]` is the mean of the squares over the channels, as a vector `[B, H * W]`
    of length 1. So the numbers of channels may differ; height and width may not. The paper's sum
    over layers with beta = 1000 over the size of the map is a weight of some tens here.

    Zagoruyko, Komodakis: Paying More Attention to Attention, ICLR 2017, arXiv:1612.03928.
    """
    if student.shape[0] != teacher.shape[0] or student.shape[2:] != teacher.shape[2:]:
        raise _unequal(student, teacher)
    maps = [F.normalize(x.square().mean(1).flatten(1), dim=1) for x in (student, teacher)]
    return (maps[0] - maps[1]).square().sum(1).mean()


def structure(student: Tensor, teacher: Tensor, most: int = 256) -> Tensor:
    """Mean squared difference of how alike the places of two feature maps `[B, C, H, W]` are to one
    another, by the cosine; numbers of channels and sizes may differ.

    Both are pooled to one grid of at most `most` places first, of which each pair is compared.

    Liu et al.: Structured Knowledge Distillation for Semantic Segmentation, CVPR 2019,
    arXiv:1903.04197, the pair-wise part.
    """
    sides = [min(s, t) for s, t in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    while sides[0] * sides[1] > most:
        sides = [max(1, side // 2) for side in sides]
    alike = []
    for maps in (student, teacher):
        nodes = F.normalize(F.adaptive_max_pool2d(maps, sides).flatten(2), dim=1)
        alike.append(nodes.transpose(1, 2) @ nodes)
    return (alike[0] - alike[1]).square().mean()


def infonce(
    student: Tensor, teacher: Tensor, labels: Tensor | None = None, temperature: float = 0.1
) -> Tensor:
    """Cross entropy of finding a sample's teacher among those of the batch, by the cosine of the
    embeddings `[B, D]` over `temperature`, averaged over the batch.

    This is the contrast of CRD with the batch for its memory bank and InfoNCE for its estimator; as
    there, samples with the same label (`[B] int64`, -1 where unknown) do not stand against each
    other. At least about 0; log(B) where the embeddings say nothing.

    van den Oord, Li, Vinyals: Contrastive Predictive Coding, 2018, arXiv:1807.03748;
    Tian, Krishnan, Isola: Contrastive Representation Distillation, ICLR 2020, arXiv:1910.10699.
    """
    _same(student, teacher)
    if not temperature > 0:
        raise UserError(f"temperature = {temperature}: it must be above 0 (0.1 is usual).")
    cosine = F.normalize(student, dim=1) @ F.normalize(teacher, dim=1).T / temperature
    if labels is not None:
        alike = (labels[:, None] == labels[None]) & (labels >= 0)[:, None]
        alike.fill_diagonal_(False)
        cosine = cosine.masked_fill(alike, float("-inf"))
    return F.cross_entropy(cosine, torch.arange(len(cosine), device=cosine.device))


def srd(student: Tensor, teacher: Tensor, power: float = 4.0) -> Tensor:
    """Logarithm of one plus the mean, over batch and channels, of the distance to the `power` of
    two embeddings `[B, D]`, each channel standardised over the batch.

    The paper takes the logarithm of the sum: the same gradient where the distance is large, and one
    that does not fall to minus infinity at equality. Needs two samples or more.

    Miles, Mikolajczyk: Understanding the Role of the Projector in Knowledge Distillation,
    AAAI 2024, arXiv:2303.11098.
    """
    _same(student, teacher)
    distance = (_standardised(student) - _standardised(teacher)).abs().pow(power)
    return distance.mean().log1p()


def embedding(features: Tensor) -> Tensor:
    """The mean over the places of a feature map `[B, C, H, W]`: `[B, C]`."""
    return features.flatten(2).mean(2)


def _standardised(values: Tensor) -> Tensor:
    centred = values - values.mean(0, keepdim=True)
    return centred / (centred.square().mean(0, keepdim=True) + 1e-5).sqrt()


def _same(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise _unequal(student, teacher)


def _unequal(student: Tensor, teacher: Tensor) -> UserError:
    return UserError(
        f"The student's features {list(student.shape)} do not match the teacher's "
        f"{list(teacher.shape)}."
    )
