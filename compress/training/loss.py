"""Losses as users write them, and as the loop and the gradient criteria call them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.export.onnx_export import logits_of

Loss = Callable[..., Tensor]
"""From outputs `[B, K]`, images `[B, C, H, W]` and targets `[B, ...]` to a scalar, a mean over
`B`."""


def as_loss(loss: Callable[..., Any], output: str | None = None) -> Loss:
    """`loss` as it is called here: with outputs, images and targets.

    One that takes two arguments, such as `nn.CrossEntropyLoss()`, gets outputs and targets. What it
    gives is checked to be a scalar.

    Args:
        output: of a network that gives several, the name of the one that the loss takes.

    Raises:
        UserError: something that cannot be called, or a module with weights of its own, which
            nothing would train.
    """
    if not callable(loss):
        raise UserError(
            f"loss: got a {type(loss).__name__}; expected a function of outputs and targets, such "
            "as nn.CrossEntropyLoss()."
        )
    if isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters()):
        raise UserError(
            f"loss: {type(loss).__name__} has weights of its own, which are not trained here. Put "
            "them into the network, or freeze them with requires_grad_(False)."
        )
    takes_images = _takes_images(loss)

    def called(outputs: Any, images: Any, targets: Any, *samples: Any) -> Tensor:
        chosen = logits_of(outputs, output)
        if isinstance(loss, nn.Module):
            loss.to(chosen.device)
        found = loss(chosen, images, targets) if takes_images else loss(chosen, targets)
        return scalar(found)

    return called


def scalar(value: Any) -> Tensor:
    """A loss that is one number.

    Raises:
        UserError: it is none.
    """
    if isinstance(value, Tensor) and value.ndim == 0:
        return value
    got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise UserError(
        f"The loss is {got}; expected a scalar tensor, the mean over the batch: leave "
        "reduction='none' out, or take its mean()."
    )


def _takes_images(loss: Callable[..., Any]) -> bool:
    """Whether a loss wants three arguments and not two."""
    try:
        found = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss)
    except (TypeError, ValueError):  # built in
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    wanted = [p for p in found.parameters.values() if p.kind in kinds and p.default is p.empty]
    several = any(p.kind is p.VAR_POSITIONAL for p in found.parameters.values())
    return several or len(wanted) > 2
