"""Divides any network into ordered layer groups, from the input to the head.

Layer-wise learning rates (ULMFiT, arXiv:1801.06146; BEiT, arXiv:2106.08254) and gradual unfreezing
(ULMFiT) use them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

_CONTAINERS = (nn.Sequential, nn.ModuleList)
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


@dataclass
class LayerGroup:
    name: str
    parameters: list[nn.Parameter] = field(default_factory=list)
    batch_norms: list[nn.Module] = field(default_factory=list)
    """Those whose running averages must stand still while the group is frozen."""


def layer_groups(model: nn.Module) -> list[LayerGroup]:
    """Groups in the order of registration; the head is in the last one.

    A group is the first child of a `Sequential` or `ModuleList` on a parameter's path: a block of a
    ResNet or a ViT. Outside of containers each layer is one. A norm goes with the layer before it;
    parameters of the network itself (class token, positions) belong to the first group.
    """
    groups: dict[str, LayerGroup] = {}
    joined: dict[str, str] = {}
    tokens: list[nn.Parameter] = []
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if not own and not norm:
            continue
        key = _key(model, name)
        if key is None:
            tokens += own
            continue
        if key not in joined:
            is_norm = isinstance(model.get_submodule(key), _NORMS)
            joined[key] = list(groups)[-1] if is_norm and groups else key
            groups.setdefault(joined[key], LayerGroup(joined[key]))
        group = groups[joined[key]]
        group.parameters += own
        if norm:
            group.batch_norms.append(module)
    found = [group for group in groups.values() if group.parameters]
    if tokens and found:
        found[0].parameters[:0] = tokens
    return found


def _key(model: nn.Module, name: str) -> str | None:
    """The group of a module with parameters of its own; None for the network's own ones."""
    parts = name.split(".") if name else []
    module = model
    for depth, part in enumerate(parts):
        inside = isinstance(module, _CONTAINERS)
        module = module.get_submodule(part)
        if inside:
            return ".".join(parts[: depth + 1])
    has_layers = next(module.children(), None) is not None
    return None if has_layers or not name else name


def decayed_rates(
    groups: list[LayerGroup], lr: float, decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Optimiser groups: the last layers learn with `lr`, each one before with `decay` times that.

    Weight decay is for weights only, never for norms and biases.
    """
    found: list[dict[str, Any]] = []
    for depth, group in enumerate(reversed(groups)):
        for wide in (True, False):
            parameters = [p for p in group.parameters if (p.ndim > 1) == wide]
            if parameters:
                found.append(
                    {
                        "params": parameters,
                        "lr": lr * decay**depth,
                        "weight_decay": weight_decay if wide else 0.0,
                    }
                )
    return found


def unfreeze(groups: list[LayerGroup], epoch: int, every: int) -> int:
    """Let the last group learn, and one more after each `every` epochs; returns how many do.

    Call it after `model.train()`.
    """
    learning = min(len(groups), 1 + epoch // every)
    for number, group in enumerate(reversed(groups)):
        for parameter in group.parameters:
            parameter.requires_grad_(number < learning)
        if number >= learning:
            for norm in group.batch_norms:
                norm.eval()
    return learning
