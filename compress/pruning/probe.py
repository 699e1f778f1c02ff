"""Whether a structure is right: the network with channels cut against the one with them zeroed.

A group that was traced wrongly either does not run once it is cut, or gives other numbers than
the same network with those channels switched off. Both are found here, before anything is cut
from the user's network, and such a group is left alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import layout
from .remove import kept_channels, remove
from .structure import Group, Structure, is_depthwise, named_tensor, slices
from .trace import shadow, tensors_of
from .widths import ladder

_TOLERANCE = 1e-7
"""Relative, in float64: a wrong group differs by far more, a right one by rounding only."""


def difference(
    model: nn.Module, groups: Sequence[Group], removed: Mapping[str, Tensor], example: Tensor
) -> float:
    """Largest difference of the outputs, relative to the largest output, in float64.

    `removed` maps group names to masks [units]. The weights are those of `model`, with noise on
    those that would hide an error (zero heads, fresh norms, tiny layer scales). Raises whatever
    the forward pass of the cut network raises.
    """
    double = shadow(model, _unhidden)
    double.eval()
    cut = shadow(double, lambda tensor: tensor)
    remove(cut, groups, removed)
    _switch_off(double, groups, removed)
    images = example.double()
    if float(images.std()) == 0.0:
        images = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            wanted, got = tensors_of(double(images)), tensors_of(cut(images))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    worst = 0.0
    for one, other in zip(wanted, got, strict=True):
        if one.shape != other.shape:
            raise RuntimeError(f"an output changed from {list(one.shape)} to {list(other.shape)}")
        gap = float((one - other).abs().max() / one.abs().max().clamp_min(1e-30))
        worst = max(worst, gap) if math.isfinite(gap) else math.inf
    return worst


def probe(model: nn.Module, structure: Structure, example: Tensor) -> Structure:
    """`structure` without the groups whose removal does not hold; those are named."""
    left_alone = dict(structure.left_alone)
    heads = [group for group in structure.groups if group.tied_to is not None]
    free = [group for group in structure.groups if group.tied_to is None]

    def failing(part: list[Group]) -> list[Group]:
        why = _why_not(
            model, part + [h for h in heads if h.tied_to in {g.name for g in part}], example
        )
        if why is None:
            return []
        if len(part) == 1:
            left_alone[part[0].name] = why
            return part
        half = len(part) // 2
        return failing(part[:half]) + failing(part[half:])

    bad = {group.name for group in failing(free)} if free else set()
    if not bad:
        return structure
    kept = tuple(g for g in structure.groups if g.name not in bad and g.tied_to not in bad)
    return Structure(kept, left_alone)


def _why_not(model: nn.Module, groups: list[Group], example: Tensor) -> str | None:
    try:
        gap = difference(model, groups, _half(groups), example)
    except Exception as error:
        return (
            f"the network fails without some of its channels ({str(error).splitlines()[0][:120]})"
        )
    if gap > _TOLERANCE:
        return f"without some of its channels the network computes something else ({gap:.1g})"
    return None


def _half(groups: Sequence[Group]) -> dict[str, Tensor]:
    """Masks of a random half of each group, in allowed widths."""
    generator = torch.Generator().manual_seed(0)
    counts: dict[str, int] = {}
    for group in groups:
        if group.tied_to is None:
            counts[group.name] = ladder(group, 1, 1.0).nearest(group.units / 2)
    widths = {g.name: counts[g.name] * g.unit_width for g in groups if g.tied_to is None}
    removed = {}
    for group in groups:
        count = counts.get(group.name)
        if count is None and group.tied_to is not None:
            count = widths[group.tied_to] // group.unit_width
        order = torch.randperm(group.units, generator=generator)
        mask = torch.ones(group.units, dtype=torch.bool)
        mask[order[:count]] = False
        removed[group.name] = mask
    return removed


def _unhidden(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.clone()
    tensor = tensor.double()
    if tensor.dim() <= 1 or float(tensor.std()) < 1e-6 or max(tensor.shape) == tensor.numel():
        generator = torch.Generator().manual_seed(tensor.numel())
        noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        return tensor + 0.1 * noise.to(tensor.device)
    return tensor.clone()


def _switch_off(model: nn.Module, groups: Sequence[Group], removed: Mapping[str, Tensor]) -> None:
    """Zero what reads the removed channels; norms over channels look at the others only."""
    modules = dict(model.named_modules())
    for cut, channels in kept_channels(groups, removed).values():
        module = modules.get(cut.module)
        if module is None or cut.dim is not None:
            continue
        off = torch.ones(cut.width, dtype=torch.bool)
        off[channels] = False
        gone = torch.nonzero(off).flatten()
        attention = layout(module)
        if attention is not None:
            for part in slices(module, cut.side):
                tensor = named_tensor(module, part.tensor)
                if tensor is not None and (cut.side == "inner" or part.dim == 1):
                    tensor.data.index_fill_(part.dim, part.positions(gone, cut.width), 0.0)
        elif cut.side == "in" and not is_depthwise(module):
            for part in slices(module, "in"):
                tensor = named_tensor(module, part.tensor)
                tensor.data.index_fill_(part.dim, part.positions(gone, cut.width), 0.0)
        elif isinstance(module, nn.LayerNorm):
            last = not type(module).__name__.endswith("2d")
            module.forward = MethodType(_layer_norm(channels, last), module)  # type: ignore[method-assign]
        elif isinstance(module, nn.GroupNorm):
            module.forward = MethodType(_group_norm(channels), module)  # type: ignore[method-assign]


def _layer_norm(channels: Tensor, last: bool) -> Any:
    def forward(self: nn.LayerNorm, images: Tensor) -> Tensor:
        tokens = images if last else images.movedim(1, -1)
        weight = self.weight[channels] if self.weight is not None else None
        bias = self.bias[channels] if self.bias is not None else None
        normal = F.layer_norm(tokens[..., channels], (len(channels),), weight, bias, self.eps)
        result = torch.zeros_like(tokens)
        result[..., channels] = normal
        return result if last else result.movedim(-1, 1)

    return forward


def _group_norm(channels: Tensor) -> Any:
    def forward(self: nn.GroupNorm, images: Tensor) -> Tensor:
        weight = self.weight[channels] if self.affine else None
        bias = self.bias[channels] if self.affine else None
        normal = F.group_norm(images[:, channels], self.num_groups, weight, bias, self.eps)
        result = torch.zeros_like(images)
        result[:, channels] = normal
        return result

    return forward
