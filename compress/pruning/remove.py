"""Cuts units out of a network, in place.

torch-pruning's `Group.prune()` walks the graph again for every group, drops `requires_grad` and the
memory format, and does not tell what it cut. Here one pass over the structure cuts every tensor
once and records what was kept, for the optimiser's state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .adapters import follow
from .attention import head_count, layout
from .structure import Cut, Group, named_tensor, set_width, slices


@dataclass(frozen=True)
class Kept:
    """What stays of one tensor: int64 positions along some of its dimensions."""

    tensor: str
    positions: dict[int, Tensor]


def kept_channels(
    groups: Iterable[Group], removed: Mapping[str, Tensor]
) -> dict[tuple[str, str], tuple[Cut, Tensor]]:
    """Per side of a module the channels that stay, int64 ascending.

    `removed` maps a group's name to a bool mask [units] of what goes. Sides that lose nothing
    are left out.
    """
    gone: dict[tuple[str, str], tuple[Cut, Tensor]] = {}
    for group in groups:
        mask = removed.get(group.name)
        if mask is None or not bool(mask.any()):
            continue
        for cut in group.cuts:
            key = (cut.module, cut.side)
            if key not in gone:
                gone[key] = (cut, torch.zeros(cut.width, dtype=torch.bool))
            indices = torch.tensor(cut.indices)
            gone[key][1][indices[mask[torch.tensor(cut.units)]]] = True
    return {
        key: (cut, torch.nonzero(~lost).flatten())
        for key, (cut, lost) in gone.items()
        if bool(lost.any())
    }


def remove(model: nn.Module, groups: Iterable[Group], removed: Mapping[str, Tensor]) -> list[Kept]:
    """Cut the units that `removed` marks; returns what stays of each tensor that was cut.

    Parameters keep `requires_grad`, their gradient, device, dtype and memory format.
    """
    modules = dict(model.named_modules())
    kept: dict[str, dict[int, Tensor]] = {}
    widths: list[tuple[nn.Module, Cut, int]] = []
    for cut, channels in kept_channels(groups, removed).values():
        if cut.dim is not None:
            kept.setdefault(cut.module, {})[cut.dim] = channels
            continue
        module = modules[cut.module]
        for part in slices(module, cut.side):
            if named_tensor(module, part.tensor) is None:
                continue
            name = f"{cut.module}.{part.tensor}" if cut.module else part.tensor
            kept.setdefault(name, {})[part.dim] = part.positions(channels, cut.width)
        widths.append((module, cut, len(channels)))
    with torch.no_grad():
        for name, positions in kept.items():
            _cut(model, name, positions)
        for module, cut, width in widths:
            if cut.side == "inner":  # after the cut: the tensors are no longer shared
                _rescale_queries(module, cut.width, width)
    for module, cut, width in widths:
        set_width(module, cut.side, width)
    follow(model)
    return [Kept(name, positions) for name, positions in kept.items()]


def _rescale_queries(module: nn.Module, old: int, new: int) -> None:
    """Softmax divides by the root of a head's width; the queries make up for the change."""
    found = layout(module)
    if found is None or not found.rescale:
        return
    assert old % head_count(module) == 0 and new % head_count(module) == 0
    for name in (found.qkv[0], found.biases[0]):
        tensor = named_tensor(module, name)
        if tensor is not None:
            tensor[:new].mul_((new / old) ** 0.5)


def _cut(model: nn.Module, name: str, positions: dict[int, Tensor]) -> None:
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    old = getattr(owner, leaf)
    new = _select(old.detach(), positions)
    if isinstance(old, nn.Parameter):
        fresh = nn.Parameter(new, requires_grad=old.requires_grad)
        if old.grad is not None:
            fresh.grad = _select(old.grad, positions)
        setattr(owner, leaf, fresh)
    else:
        setattr(owner, leaf, new)


def _select(tensor: Tensor, positions: dict[int, Tensor]) -> Tensor:
    channels_last = (
        tensor.dim() == 4
        and not tensor.is_contiguous()
        and tensor.is_contiguous(memory_format=torch.channels_last)
    )
    for dim, index in positions.items():
        tensor = tensor.index_select(dim, index.to(tensor.device))
    return tensor.contiguous(memory_format=torch.channels_last) if channels_last else tensor
