"""Copies of a network to trace and to try cuts on, and their outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from vcompress.bench.errors import UserError

from ..models.faithful import tensors_of


def shadow(model: nn.Module, make: Callable[[Tensor], Tensor]) -> Any:
    """A copy of `model` whose parameters and buffers are `make(original)`; no weight is copied."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(
            make(parameter.detach()), requires_grad=parameter.is_floating_point()
        )
    for buffer in model.buffers():
        memo[id(buffer)] = make(buffer)
    return copy.deepcopy(model, memo)


def run(model: nn.Module, example: Tensor) -> list[Tensor]:
    """The tensors that `model` returns for `example`; a failure is the user's to know."""
    try:
        return tensors_of(model(example))
    except Exception as error:
        raise UserError(
            f"The network cannot be run on one image {list(example.shape)}: "
            f"{type(error).__name__}: {str(error)[:200]}. Pruning takes networks with one image "
            "tensor as input; wrap others in a module that has one."
        ) from error
