"""Means, extremes and deviations over the channels of a map: they run over those that stay.

CBAM pools over the channels to a mask, hand-written norms to a mean and a variance. Like a layer
norm they do not tie channels to one another, so that any may go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_NAMES = ("mean", "amax", "amin", "max", "min", "std", "var", "var_mean", "std_mean")
_FUNCTIONS = {
    getattr(owner, name) for owner in (torch, Tensor) for name in _NAMES if hasattr(owner, name)
}
_MAP = 4
"""Dimensions of a map [B, C, H, W]."""


class Ones(TorchFunctionMode):
    """Gives ones for such statistics: a trace then ends at them, and what else depends on a channel
    can be compared between a network that has it and one that lacks it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if func not in _FUNCTIONS or not args or not isinstance(args[0], Tensor):
            return found
        given = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else None))
        dims = given if isinstance(given, (tuple, list)) else (given,)
        if any(type(dim) is not int for dim in dims) or not _is_channel(args[0].dim(), dims):
            return found
        if isinstance(found, Tensor):
            return torch.ones_like(found)
        parts = [torch.ones_like(part) for part in found]
        return type(found)(parts) if hasattr(found, "values") else tuple(parts)


def _is_channel(rank: int, dims: Iterable[int]) -> bool:
    return rank == _MAP and {dim % rank for dim in dims} == {1}
