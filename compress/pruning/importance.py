"""Scores the importance of each unit by one of several criteria.

A criterion gives a score per weight; a unit's score is summed over its weights in each layer and
averaged over the layers of its group, so a long group does not score higher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError, nearest

from .shadow import shadow
from .structure import Cut, Group, Slice, named_tensor, slices

Importance = Literal["l1", "l2", "bn", "lamp", "taylor", "hessian", "random"]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`loss(logits [B, K], images [B, C, H, W], labels [B]) -> scalar`."""

NEEDS_BATCHES = ("taylor", "hessian")


def scores(
    model: nn.Module,
    groups: Iterable[Group],
    importance: Importance = "l2",
    batches: Iterable[tuple[Tensor, Tensor]] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Score per unit, float32 [units] by group name; the lowest goes first.

    - `l1`, `l2`: sum of absolute or squared weights (Li et al., ICLR 2017).
    - `bn`: absolute scale of batch norms (Liu et al., Network Slimming, ICCV 2017).
    - `lamp`: squared weights over those of all larger units (Lee et al., ICLR 2021).
    - `taylor`: (sum of weight times gradient) squared, averaged over batches (Molchanov et al.,
      CVPR 2019). With a distillation loss it is first-order on that loss.
    - `hessian`: squared weight times squared gradient, the diagonal Fisher form of optimal brain
      damage (LeCun et al., 1989).
    - `random`: for comparison.

    `batches` yields (images, labels) and `loss` defaults to cross-entropy; only the two that use
    gradients need them.
    """
    known = get_args(Importance)
    if importance not in known:
        raise UserError(
            f"importance = {importance!r}: expected one of {', '.join(known)}."
            f"{nearest(importance, known)}"
        )
    groups = list(groups)
    if importance in NEEDS_BATCHES:
        if batches is None:
            raise UserError(
                f"importance = {importance!r} needs batches of images to take "
                "gradients on: give data, or choose l1 or l2."
            )
        return _by_gradient(model, groups, importance, batches, loss or _cross_entropy)
    if importance == "random":
        generator = torch.Generator().manual_seed(seed)
        return {group.name: torch.rand(group.units, generator=generator) for group in groups}
    weigh: Callable[[Tensor], Tensor] = torch.abs if importance in ("l1", "bn") else torch.square
    tensors = {name: weigh(p.detach().float()) for name, p in model.named_parameters()}
    result = _per_unit(model, groups, tensors, norms_only=importance == "bn")
    if importance == "bn":
        fallback = _per_unit(
            model,
            [g for g in groups if not bool(result[g.name].any())],
            {name: p.detach().float().abs() for name, p in model.named_parameters()},
        )
        result |= fallback  # groups without a norm are ranked by their weights
    return (
        {name: _lamp(score) for name, score in result.items()} if importance == "lamp" else result
    )


def _cross_entropy(logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels)


def _lamp(score: Tensor) -> Tensor:
    order = torch.argsort(score)
    ascending = score[order]
    larger = ascending.flip(0).cumsum(0).flip(0)
    result = torch.empty_like(score)
    result[order] = ascending / larger.clamp_min(1e-30)
    return result


def _by_gradient(
    model: nn.Module,
    groups: list[Group],
    importance: Importance,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Loss,
) -> dict[str, Tensor]:
    copy = shadow(model, torch.clone)  # gradients of a frozen model too, and none left behind
    copy.eval()  # batch norms stand still, as they will when deployed
    total = {group.name: torch.zeros(group.units) for group in groups}
    device = next(copy.parameters()).device
    count = 0
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        copy.zero_grad(set_to_none=True)
        loss(copy(images), images, labels).backward()  # type: ignore[no-untyped-call]
        tensors = {
            name: (p * p.grad).detach().float() if p.grad is not None else torch.zeros_like(p)
            for name, p in copy.named_parameters()
        }
        if importance == "hessian":
            part = _per_unit(copy, groups, {n: t.square() for n, t in tensors.items()})
        else:
            part = _per_unit(copy, groups, tensors, square=True)
        for name, score in part.items():
            total[name] += score
        count += 1
    if count == 0:
        raise UserError(f"importance = {importance!r}: no batch of images was given.")
    return {name: score / count for name, score in total.items()}


def _per_unit(
    model: nn.Module,
    groups: Iterable[Group],
    tensors: Mapping[str, Tensor],
    *,
    norms_only: bool = False,
    square: bool = False,
) -> dict[str, Tensor]:
    modules = dict(model.named_modules())
    result = {}
    for group in groups:
        total = torch.zeros(group.units)
        parts = 0
        for cut in group.cuts:
            module = modules.get(cut.module)
            if norms_only and not isinstance(module, nn.modules.batchnorm._NormBase):
                continue
            along = _along(cut, module, tensors, norms_only)
            if along is None:
                continue
            channels = torch.zeros(group.units)
            units = torch.tensor(cut.units)
            channels.index_add_(0, units, along[torch.tensor(cut.indices)].cpu())
            total += channels.square() if square else channels
            parts += 1
        result[group.name] = total / max(parts, 1)
    return result


def _along(
    cut: Cut, module: nn.Module | None, tensors: Mapping[str, Tensor], norms_only: bool
) -> Tensor | None:
    """The scores of a cut's tensors summed to one per channel, [width], or None without weights."""
    if cut.dim is not None or module is None:
        if cut.module not in tensors or cut.dim is None or cut.module.endswith("bias"):
            return None
        return _fold(tensors[cut.module], Slice("", cut.dim), cut.width)
    total: Tensor | None = None
    for part in slices(module, cut.side):
        name = f"{cut.module}.{part.tensor}" if cut.module else part.tensor
        if part.tensor.endswith("bias") or name not in tensors:
            continue
        if named_tensor(module, part.tensor) is None:
            continue
        folded = _fold(tensors[name], part, cut.width)
        total = folded if total is None else total + folded
    return total


def _fold(tensor: Tensor, part: Slice, width: int) -> Tensor:
    others = [dim for dim in range(tensor.dim()) if dim != part.dim % tensor.dim()]
    flat = tensor.sum(dim=others) if others else tensor
    if part.modulo:
        return flat.repeat(width // part.modulo)
    return flat.view(part.blocks, width).sum(0) if part.blocks > 1 else flat
