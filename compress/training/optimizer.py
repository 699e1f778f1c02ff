"""The optimiser of a training, and which parameters learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError

from ..models.head import heads
from .config import TrainConfig


def optimizer_for(
    model: nn.Module, config: TrainConfig, extra: list[dict[str, Any]]
) -> torch.optim.Optimizer:
    special = {id(p) for group in extra for p in group["params"]}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad and id(parameter) not in special:
            (decayed if parameter.ndim > 1 else plain).append(parameter)  # norms, biases: 1-d
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
        *extra,
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise UserError("Nothing is left to train: every parameter is frozen. See --freeze.")
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0
        )
    return torch.optim.AdamW(groups, lr=config.lr)


def freeze(model: nn.Module, config: TrainConfig, classes: int, example: Tensor) -> list[nn.Module]:
    """Fix the parameters that `config.freeze` names; returns the modules to keep in eval mode."""
    if config.freeze == "none":
        return []
    last = heads(model, classes, example)
    modules: list[nn.Module] = []
    for module_name, module in model.named_modules():
        in_head = module_name in last
        own = list(module.parameters(recurse=False))
        if in_head == (config.freeze == "head"):
            for parameter in own:
                parameter.requires_grad_(False)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                modules.append(module)
    return modules
