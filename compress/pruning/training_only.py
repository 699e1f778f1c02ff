"""Layers that run in training alone, as auxiliary heads do: they follow the channels they read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def set_fullest(model: nn.Module, example: Tensor) -> bool:
    """Put `model` into the mode in which all its layers run, in place; gives what `set_mode` takes.

    That is evaluation, but where training calls what evaluation does and more.
    """
    set_mode(model, training=False)
    called = _called(model, example)
    own = {m for m in model.modules() if next(m.parameters(recurse=False), None) is not None}
    if own <= called:
        return False
    set_mode(model, training=True)
    if _called(model, example) > called:
        return True
    set_mode(model, training=False)
    return False


def set_mode(model: nn.Module, training: bool) -> None:
    """Put `model` into evaluation, or everything in it that has children into training: single
    layers (norms, dropout) stay in evaluation, so that the outputs depend on nothing random."""
    model.eval()
    if training:
        for module in model.modules():
            module.training = next(module.children(), None) is not None


def _called(model: nn.Module, example: Tensor) -> set[nn.Module]:
    found: set[nn.Module] = set()

    def note(module: nn.Module, inputs: Any) -> None:
        found.add(module)

    hooks = [module.register_forward_pre_hook(note) for module in model.modules()]
    try:
        with torch.no_grad():
            model(example)
    except Exception:  # whoever runs it next says why
        return set()
    finally:
        for hook in hooks:
            hook.remove()
    return found
