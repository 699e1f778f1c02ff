"""The structure of a network as plain data: which channels must be cut together.

A *unit* is the smallest set of channels that can go at once: one output channel of a layer, the
matching weights of its norm, the matching input channel of every layer that reads it. A *group*
is all units of one width: the layers of a residual stream are one group. A *cut* says where the
units of a group lie in one layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .attention import layout, set_attention_width

Side = Literal["out", "in", "inner"]
"""`inner` is the width of the heads of an attention layer, between its two projections."""


@dataclass(frozen=True)
class Cut:
    """Where a group's units lie along one side of one module (or in a free parameter)."""

    module: str
    """Path of the module, or of the parameter where `dim` is given."""
    side: Side
    indices: tuple[int, ...]
    """Channels of that side."""
    units: tuple[int, ...]
    """The unit of each of `indices`."""
    width: int
    """Channels of that side altogether; some may belong to other groups."""
    dim: int | None = None
    """For a parameter that stands outside the known layers: its pruned dimension."""


@dataclass(frozen=True)
class Group:
    name: str
    """Path of the first layer that produces these channels."""
    units: int
    width: int
    """Channels of that layer; `width / units` channels go at a time."""
    cuts: tuple[Cut, ...]
    multiple: int = 1
    """The width must stay a multiple of this (attention heads)."""
    tied_to: str | None = None
    """Group whose width this one must follow (the heads of attention follow the stream)."""

    @property
    def unit_width(self) -> int:
        return max(1, self.width // self.units)

    def kind(self, modules: dict[str, nn.Module]) -> tuple[str, ...]:
        """Groups of one kind have the same sorts of layers on the same sides."""
        sorts = set()
        for cut in self.cuts:
            module = modules.get(cut.module)
            size = getattr(module, "kernel_size", "")
            sorts.add(f"{type(module).__name__}{size}:{cut.side}")
        return tuple(sorted(sorts))


@dataclass(frozen=True)
class Structure:
    groups: tuple[Group, ...]
    left_alone: dict[str, str] = field(default_factory=dict)
    """Layers that cannot be pruned, with the reason."""


@dataclass(frozen=True)
class Slice:
    """How channels of a side lie in one tensor of a module."""

    tensor: str
    dim: int
    blocks: int = 1
    """The dimension repeats the channels so many times (q, k and v in one tensor)."""
    modulo: int = 0
    """The dimension holds the channels modulo this (a grouped convolution's input)."""

    def positions(self, channels: Tensor, width: int) -> Tensor:
        """Indices along `dim` of `channels`, int64, ascending."""
        if self.modulo:
            positions: Tensor = torch.unique(channels % self.modulo)
            return positions
        offsets = torch.arange(self.blocks) * width
        return torch.sort((channels[None] + offsets[:, None]).flatten()).values


def is_depthwise(module: nn.Module) -> bool:
    """Whether each channel is convolved alone; with a multiplier it makes several of one."""
    return (
        isinstance(module, nn.modules.conv._ConvNd)
        and module.groups == module.in_channels
        and module.groups > 1
        and (module.out_channels == module.in_channels or not module.transposed)
    )


def multiplier(module: nn.Module) -> int:
    """Channels that a depthwise convolution makes of one; 1 for any other layer."""
    return int(module.out_channels // module.in_channels) if is_depthwise(module) else 1  # type: ignore[operator]


def slices(module: nn.Module, side: Side) -> tuple[Slice, ...]:
    """The tensors of `module` that have its channels of `side`, and along which dimension."""
    if isinstance(module, nn.modules.conv._ConvNd):
        if is_depthwise(module):
            if side == "in" and multiplier(module) > 1:
                return ()  # the channels made of a channel go with it
            return (Slice("weight", 0), Slice("bias", 0))
        first, second = (1, 0) if module.transposed else (0, 1)
        per_group = (module.in_channels if side == "in" else module.out_channels) // module.groups
        grouped = module.groups > 1 and (side == "in") != module.transposed
        inner = Slice(
            "weight", second if side == "in" else first, modulo=per_group if grouped else 0
        )
        return (inner,) if side == "in" else (inner, Slice("bias", 0))
    if isinstance(module, nn.Linear):
        return (Slice("weight", 1),) if side == "in" else (Slice("weight", 0), Slice("bias", 0))
    if isinstance(module, nn.Embedding):
        return (Slice("weight", 1),)
    found = layout(module)
    if found is not None:
        proj = found.proj
        if side == "inner":
            made = (*found.qkv, *found.biases)
            parts = (Slice(name, 0, blocks=found.blocks) for name in made)
            return (*parts, Slice(f"{proj}.weight", 1))
        read = (Slice(name, 1) for name in found.qkv)
        return (*read, Slice(f"{proj}.weight", 0), Slice(f"{proj}.bias", 0))
    # norms, frozen norms, PReLU: one dimension of channels
    names = ("weight", "bias", "running_mean", "running_var")
    return tuple(Slice(name, 0) for name in names)


def set_width(module: nn.Module, side: Side, width: int) -> None:
    """Write a new width into the numbers a module keeps about itself."""
    if isinstance(module, nn.modules.conv._ConvNd):
        if is_depthwise(module):
            if side == "in" or multiplier(module) == 1:
                module.in_channels = module.groups = width
            if side == "out":
                module.out_channels = width
        elif side == "in":
            module.in_channels = width
        else:
            module.out_channels = width
    elif isinstance(module, nn.Linear):
        if side == "in":
            module.in_features = width
        else:
            module.out_features = width
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = (width,)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = width
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = width
    elif isinstance(module, nn.PReLU):
        module.num_parameters = width
    elif layout(module) is not None:
        set_attention_width(module, side == "inner", width)
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = width


def named_tensor(module: nn.Module, name: str) -> Any:
    """A tensor of a module by dotted name, or None."""
    path, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(path), leaf, None)
