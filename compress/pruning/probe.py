"""Probes a structure: the network with channels cut against the one with them zeroed.

A group that was traced wrongly fails when it is cut, or gives other numbers than the same network
with those channels switched off. Both are found here, before anything is cut from the user's
network. Such a group is left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..models.faithful import tensors_of
from .attention import layout
from .channel_statistics import Ones
from .remove import kept_channels, remove
from .shadow import shadow
from .structure import Group, Structure, is_depthwise, named_tensor, slices
from .training_only import set_fullest, set_mode
from .widths import ladder

_TOLERANCE = 1e-7
"""Relative, in float64: a wrong group differs by far more, a right one by rounding only."""


class CutFailsError(Exception):
    """The network does not run with the channels cut, or its outputs change shape."""


def difference(
    model: nn.Module, groups: Sequence[Group], removed: Mapping[str, Tensor], example: Tensor,
    training: bool | None = None,
) -> float:  # fmt: skip
    """Largest difference of the outputs, relative to the largest output, in float64.

    `removed` maps group names to masks [units]. The weights are those of `model`, with noise on
    those that would hide an error (zero heads, fresh norms, tiny layer scales). Raises
    CutFailsError where the cut network does not run. Statistics over channels, which are those of
    the channels that stay, count as one. `training` is what `set_fullest` gave, where it is known.
    """
    double, images = _in_double(model, example)
    if training is None:
        set_fullest(double, images)
    else:
        set_mode(double, training)
    _calibrate(double, images)
    cut = shadow(double, lambda tensor: tensor)
    remove(cut, groups, removed)
    _switch_off(double, cut, groups, removed)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), Ones():
            wanted = tensors_of(double(images))
            try:
                got = tensors_of(cut(images))
            except Exception as error:  # whatever a forward pass may raise
                raise CutFailsError(str(error)) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    worst = 0.0
    for one, other in zip(wanted, got, strict=True):
        if one.shape != other.shape:
            raise CutFailsError(f"an output changed from {list(one.shape)} to {list(other.shape)}")
        gap = float((one - other).abs().max() / one.abs().max().clamp_min(1e-30))
        worst = max(worst, gap) if math.isfinite(gap) else math.inf
    return worst


def _in_double(model: nn.Module, example: Tensor) -> tuple[nn.Module, Tensor]:
    """A copy of `model` and images for it that hide no error, in float64."""
    images = example.double()
    if images.numel() == 1 or float(images.std()) == 0.0:
        images = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
    return shadow(model, _unhidden), images


def probe(model: nn.Module, structure: Structure, example: Tensor) -> Structure:
    """`structure` without the groups whose removal does not hold; those are named."""
    left_alone = dict(structure.left_alone)
    heads = [group for group in structure.groups if group.tied_to is not None]
    free = [group for group in structure.groups if group.tied_to is None]
    if not free:
        return structure
    training = set_fullest(*_in_double(model, example))

    def failing(part: list[Group]) -> list[Group]:
        names = {group.name for group in part}
        with_heads = part + [head for head in heads if head.tied_to in names]
        why = _why_not(model, with_heads, example, training)
        if why is None:
            return []
        if len(part) == 1:
            left_alone[part[0].name] = why
            return part
        half = len(part) // 2
        return failing(part[:half]) + failing(part[half:])

    bad = {group.name for group in failing(free)}
    if not bad:
        return structure
    kept = tuple(g for g in structure.groups if g.name not in bad and g.tied_to not in bad)
    return Structure(kept, left_alone)


def _why_not(model: nn.Module, groups: list[Group], example: Tensor, training: bool) -> str | None:
    try:
        gap = difference(model, groups, _half(groups), example, training)
    except Exception as error:
        return (
            f"the network fails without some of its channels ({str(error).splitlines()[0][:120]})"
        )
    if gap > _TOLERANCE:
        return f"without some of its channels the network computes something else ({gap:.1g})"
    return None


def _half(groups: Sequence[Group]) -> dict[str, Tensor]:
    """Masks of a random half of each group, in allowed widths.

    The first and the last unit go: every other moves, so that an operation on channels with fixed
    numbers (`maps[:, :4]`) is on others than before.
    """
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
        inner = (order > 0) & (order < group.units - 1)
        order = torch.cat([order[inner], order[~inner]])
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


def _calibrate(model: nn.Module, images: Tensor) -> None:
    """Give batch norms the statistics of `images`: a signal that fades hides an error."""

    def measure(module: Any, inputs: tuple[Tensor, ...]) -> None:
        dims = [0, *range(2, inputs[0].dim())]
        variance, mean = torch.var_mean(inputs[0], dims, correction=0)
        if module.running_var is not None and float(variance.max()) > 0.0:
            module.running_mean.copy_(mean + 0.1 * variance.sqrt())
            module.running_var.copy_(variance + 0.01 * variance.mean())

    hooks = [
        module.register_forward_pre_hook(measure)
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        or type(module).__name__.startswith("FrozenBatchNorm")
    ]
    if hooks:
        with torch.no_grad():
            model(images)
    for hook in hooks:
        hook.remove()


def _switch_off(
    model: nn.Module, cut_model: nn.Module, groups: Sequence[Group], removed: Mapping[str, Tensor]
) -> None:
    """Zero what reads the removed channels; norms over channels look at the others only."""
    modules = dict(model.named_modules())
    for cut, channels in kept_channels(groups, removed).values():
        path = cut.module if cut.dim is None else cut.module.rpartition(".")[0]
        module = modules[path]
        off = torch.ones(cut.width, dtype=torch.bool)
        off[channels] = False
        gone = torch.nonzero(off).flatten()
        attention = layout(module) if cut.dim is None else None
        if attention is not None:
            for part in slices(module, cut.side):
                tensor = named_tensor(module, part.tensor)
                if tensor is not None and (cut.side == "inner" or part.dim == 1):
                    _zero(tensor, part.dim, part.positions(gone, cut.width))
        elif cut.dim is None and cut.side == "in" and not is_depthwise(module):
            for part in slices(module, "in"):
                tensor = named_tensor(module, part.tensor)
                _zero(tensor, part.dim, part.positions(gone, cut.width))
        elif cut.dim is not None and cut.side == "in":
            _zero(named_tensor(model, cut.module), cut.dim, gone)
        else:
            dim = _norm_dim(module)
            if dim is not None:
                narrow = cut_model.get_submodule(path)
                module.forward = _on_kept(narrow, channels, dim)


def _zero(tensor: Tensor, dim: int, positions: Tensor) -> None:
    tensor.data.index_fill_(dim, positions.to(tensor.device), 0.0)


def _norm_dim(module: nn.Module) -> int | None:
    """The dimension of channels of a layer that normalises over them, or None for others."""
    if isinstance(module, nn.GroupNorm) or type(module).__name__ == "LayerNorm2d":
        return 1
    if type(module).__name__ == "GlobalResponseNorm":
        return int(module.channel_dim)  # type: ignore[arg-type]
    if getattr(module, "data_format", "") == "channels_first":  # that of transformers
        return 1
    return -1 if isinstance(module, nn.LayerNorm) else None


def _on_kept(narrow: nn.Module, channels: Tensor, dim: int) -> Callable[[Tensor], Tensor]:
    """The cut norm on the channels that stay; zeros elsewhere, where nobody looks."""

    def forward(images: Tensor) -> Tensor:
        result = torch.zeros_like(images)
        index = channels.to(images.device)
        return result.index_copy(dim, index, narrow(images.index_select(dim, index)))

    return forward
