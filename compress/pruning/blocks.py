"""Depth pruning: residual blocks and transformer layers that can be removed, least important first.

A block that adds to its input can be removed. Running finds those blocks: with all its weights at
zero, a residual block hands on its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError

from ..models.patterns import check_patterns, matches
from .shadow import run, shadow


@dataclass(frozen=True)
class DroppedBlock:
    """A block that went, and what that changed."""

    path: str
    effect: float
    """Mean squared change of the outputs over their variance, when it went."""


def droppable(model: nn.Module, example: Tensor) -> list[str]:
    """Paths of the innermost blocks of `model` that add to their input [1, ...]."""
    empty = shadow(model, lambda tensor: tensor.clone())
    empty.eval()
    found: list[str] = []

    def check(path: str, module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not isinstance(output, Tensor):
            return
        if output.shape == inputs[0].shape and any(True for _ in module.parameters()):
            found.append(path)

    hooks = [
        module.register_forward_hook(
            lambda module, inputs, output, path=path: check(path, module, inputs, output)
        )
        for path, module in empty.named_modules()
        if path and next(module.children(), None) is not None
    ]
    with torch.no_grad():
        run(empty, example)
    for hook in hooks:
        hook.remove()
    candidates = [path for path in found if _hands_on(empty, path, example)]
    return [
        path for path in candidates
        if not any(other.startswith(path + ".") for other in candidates)
    ]  # fmt: skip


def _hands_on(model: nn.Module, path: str, example: Tensor) -> bool:
    module = model.get_submodule(path)
    seen: list[bool] = []

    def compare(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        seen.append(torch.equal(inputs[0], output))

    kept = [(p, p.detach().clone()) for p in module.parameters()]
    hook = module.register_forward_hook(compare)
    try:
        with torch.no_grad():
            for parameter, _ in kept:
                parameter.zero_()
            model(example)
            for parameter, value in kept:
                parameter.copy_(value)
    finally:
        hook.remove()
    return bool(seen) and all(seen)


def drop_blocks(
    model: nn.Module, example: Tensor, images: Tensor, count: int, protect: Sequence[str] = ()
) -> list[DroppedBlock]:
    """Replace `count` residual blocks of `model` by identities, in place.

    One at a time goes the block whose absence changes the outputs for `images` [N, C, H, W]
    least; the others are weighed again without it. A block that holds a protected layer stays.
    Raises UserError where there are too few.
    """
    if count < 1:
        raise UserError(f"drop_blocks = {count}: expected 1 or more.")
    paths = list(dict(model.named_modules()))
    check_patterns("protect", protect, paths)
    kept = [path for path in paths if matches(path, protect)]
    left = [
        path for path in droppable(model, example)
        if not any(other == path or other.startswith(f"{path}.") for other in kept)
    ]  # fmt: skip
    if count > len(left):
        raise UserError(
            f"drop_blocks = {count}: this network has {len(left)} blocks that can go"
            f"{': ' + ', '.join(left) if left else ''}."
        )
    trial = shadow(model, lambda tensor: tensor)
    trial.eval()
    wanted = _outputs(trial, images)
    dropped: list[DroppedBlock] = []
    for _ in range(count):
        effects = {path: _effect(trial, path, images, wanted) for path in left}
        path = min(effects, key=lambda name: effects[name])
        for network in (trial, model):
            _replace(network, path, nn.Identity())
        left.remove(path)
        dropped.append(DroppedBlock(path, effects[path]))
    return dropped


def _effect(trial: nn.Module, path: str, images: Tensor, wanted: Tensor) -> float:
    block = trial.get_submodule(path)
    _replace(trial, path, nn.Identity())
    try:
        got = _outputs(trial, images)
    finally:
        _replace(trial, path, block)
    return float((got - wanted).square().mean() / wanted.var().clamp_min(1e-30))


def _outputs(model: nn.Module, images: Tensor) -> Tensor:
    """All outputs in one row; a few images at a time, whose activations are held at once."""
    with torch.no_grad():
        batches = [run(model, batch) for batch in torch.split(images, 32)]
    return torch.cat([output.flatten() for outputs in batches for output in outputs])


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    module.train(model.get_submodule(path).training)
    setattr(model.get_submodule(parent), child, module)
