"""Prunes an optimiser's state along with the network: the momenta of what stays are kept."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .prune import PruneReport


def remap_optimizer(
    optimizer: torch.optim.Optimizer,
    before: Mapping[str, nn.Parameter],
    model: nn.Module,
    report: PruneReport,
) -> None:
    """Point `optimizer` at the parameters of the pruned `model` and cut its state like them.

    `before` is `dict(model.named_parameters())` from before `prune`. State tensors with the shape
    of their parameter (momenta, second moments) are cut in the same places; others stay.
    """
    after = dict(model.named_parameters())
    kept = {item.tensor: item.positions for item in report.kept}
    names = {id(parameter): name for name, parameter in before.items()}
    fresh: dict[int, tuple[nn.Parameter, nn.Parameter, dict[int, Tensor]]] = {}
    for group in optimizer.param_groups:
        for position, parameter in enumerate(group["params"]):
            name = names.get(id(parameter))
            if name is None or after[name] is parameter:
                continue
            group["params"][position] = after[name]
            fresh[id(parameter)] = (parameter, after[name], kept.get(name, {}))
    for old, new, positions in fresh.values():
        if old not in optimizer.state:
            continue
        state = optimizer.state.pop(old)
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == old.shape and value.dim() > 0:
                for dim, index in positions.items():
                    value = value.index_select(dim, index.to(value.device))
                state[key] = value
        optimizer.state[new] = state
