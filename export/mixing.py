"""Whether what a network gives for an image depends on the other images of its batch.

Batch norms without running averages (`track_running_stats=False`) take their statistics over the
batch in evaluation too. Such a network has another accuracy at every batch size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from .modes import evaluating

IMAGES = 4
"""Number of images of the batch."""
LEAST = 1e-3
"""Smallest difference that counts, over the size of the output."""
LEAST_ROUNDED = 0.3
"""The same where tensors are rounded to 8 bits: values near a tie move by a whole step."""

_Seen = dict[tuple[str, int], tuple[list[Tensor], list[Tensor]]]
"""Inputs and outputs of each call of a module, by its path and the number of the call."""


def mixed_layer(model: nn.Module, images: Tensor, rounds: bool = False) -> str | None:
    """The first layer whose output for an image changes with the batch while its inputs do not.

    Args:
        model: it is run in evaluation; its modes are as before afterwards.
        images: `[N, C, H, W]`.
        rounds: whether the network has quantisers.

    Returns:
        path and class, as `bn1 (BatchNorm2d)`; the class of the network where no layer does it.
        None where every image is on its own.
    """
    if len(images) < 2:
        return None
    images, least = images[:IMAGES], LEAST_ROUNDED if rounds else LEAST
    with evaluating(model):
        together, alone = _seen(model, images), _seen(model, images[:1])
    layer = _first_apart(model, together, alone, least)
    return None if layer is None or unsteady_layer(model, images, rounds) else layer


def unsteady_layer(model: nn.Module, images: Tensor, rounds: bool = False) -> str | None:
    """The first layer that gives something else when the same images come again, as `mixed_layer`
    names it; None where none does."""
    least = LEAST_ROUNDED if rounds else LEAST
    with evaluating(model):
        one, other = _seen(model, images[:IMAGES]), _seen(model, images[:IMAGES])
    return _first_apart(model, one, other, least)


def _first_apart(model: nn.Module, one: _Seen, other: _Seen, least: float) -> str | None:
    """The first call whose outputs differ while its inputs do not, where the network's do."""
    root = ("", 1)
    if root not in one or root not in other or not _differ(one[root][1], other[root][1], least):
        return None
    for key, (inputs, outputs) in other.items():
        before = one.get(key)
        if before is None or _differ(before[0], inputs, least):
            continue
        if _differ(before[1], outputs, least):
            kind = type(model.get_submodule(key[0])).__name__
            return f"{key[0]} ({kind})" if key[0] else kind
    return type(model).__name__


def across_the_batch(layer: str) -> str:
    """What it means that `layer` mixes the images of a batch, in words."""
    return (
        f"What the network gives for an image depends on the others of its batch, since {layer} "
        "takes statistics over the batch in evaluation too. Its accuracy is measured at batch 1, "
        "and is another at every other batch."
    )


def _seen(model: nn.Module, images: Tensor) -> _Seen:
    """Inputs and outputs of every call of every module for the first image, by path and number."""
    found: _Seen = {}
    calls: Counter[str] = Counter()

    paths = {module: path for path, module in model.named_modules()}

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        path = paths.get(module)
        if path is not None:
            calls[path] += 1
            found[path, calls[path]] = (_first(inputs, images), _first(output, images))

    # One hook for all modules: those that `fx` has copied take none of their own.
    handle = register_module_forward_hook(note)
    device = next((t.device for t in (*model.parameters(), *model.buffers())), images.device)
    try:
        with torch.no_grad():
            model(images.to(device))
    finally:
        handle.remove()
    return found


def _first(values: Any, images: Tensor) -> list[Tensor]:
    """The part of each tensor that is the first image's; windows of an image lie side by side."""
    if isinstance(values, Tensor):
        if not values.ndim or len(values) % len(images):
            return []
        return [values[: len(values) // len(images)].detach().float().clone()]
    if isinstance(values, Mapping):
        values = list(values.values())
    if isinstance(values, (tuple, list)):
        return [part for value in values for part in _first(value, images)]
    return []


def _differ(one: list[Tensor], other: list[Tensor], least: float) -> bool:
    """Whether tensors of the same shape differ; others stand for something else."""
    return any(
        float((a - b).norm()) > least * float(b.norm())
        for a, b in zip(one, other, strict=False)
        if a.shape == b.shape
    )
