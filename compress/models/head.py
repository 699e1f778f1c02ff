"""The layer that gives the logits: which one it is, and a new one for other classes."""

from __future__ import annotations

from torch import nn

from vcompress.bench.errors import UserError


def head(model: nn.Module, classes: int) -> str:
    """The dotted name of the layer that gives the logits: the last with `classes` outputs."""
    found: list[str] = [
        name
        for name, module in model.named_modules()
        if getattr(module, "out_features", getattr(module, "out_channels", None)) == classes
    ]
    if not found:
        raise UserError(f"No layer has {classes} outputs, so the head was not found.")
    return found[-1]


def replace_head(model: nn.Module, classes: int, new_classes: int) -> None:
    """Give `model` a fresh last layer for `new_classes`; the rest stays.

    Raises:
        UserError: the head is neither linear nor a convolution.
    """
    name = head(model, classes)
    old = model.get_submodule(name)
    fresh: nn.Module
    if isinstance(old, nn.Linear):
        fresh = nn.Linear(old.in_features, new_classes, bias=old.bias is not None)
    elif isinstance(old, nn.Conv2d):
        side = (old.kernel_size[0], old.kernel_size[1])
        fresh = nn.Conv2d(old.in_channels, new_classes, side, bias=old.bias is not None)
    else:
        raise UserError(f"The head {name} is a {type(old).__name__}; it cannot be replaced.")
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, fresh)
