"""The memory format of a network: channels_last is faster on most devices, and not all bear it.

`x.view(x.size(0), -1)` fails on it, and code that reads strides computes something else. So a
network is asked for it on a copy first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vcompress.export.modes import evaluating
from vcompress.export.parity import rounds_activation

from .culprit import culprit
from .faithful import tensors_of

LEAST_DIFFERENCE = 1e-3
"""Largest difference of outputs, over their size, that other orders of adding up explain."""
LEAST_DIFFERENCE_ROUNDED = 0.3
"""The same where tensors are rounded, to 8 bits or to bfloat16: ties move by a whole step."""
LEAST_DIFFERENCE_GRADIENTS = 0.1


def lay_out(model: nn.Module, layout: torch.memory_format) -> None:
    """Store the kernels of 2-D convolutions in `layout`, in place. All else stays as it is: a table
    of four dimensions is no kernel."""
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            for parameter in module.parameters(recurse=False):
                if parameter.ndim == 4:
                    # A clone: `contiguous` leaves the strides of 1 x 1 kernels as they are.
                    parameter.data = parameter.data.clone(memory_format=layout)


def against_channels_last(
    copy: nn.Module, images: Tensor, *, gradients: bool = True, rounds: bool = False
) -> str | None:
    """Why a network is not run in channels_last; None where nothing speaks against it.

    Args:
        copy: it is run forward, and backward with `gradients`, in evaluation, in both formats.
        images: real inputs `[N, C, H, W]`.
        rounds: whether tensors are rounded, as in mixed precision; quantisers always do.

    Returns:
        a part of a sentence; "" where it fails in both formats.
    """
    copy.eval()
    try:
        wanted = _answer(copy, images, gradients)
    except Exception:  # whatever a forward pass may raise
        return ""
    lay_out(copy, torch.channels_last)
    try:
        found = _answer(copy, images.contiguous(memory_format=torch.channels_last), gradients)
    except Exception as error:
        return f"it fails {culprit(error)}"
    finally:
        lay_out(copy, torch.contiguous_format)
    rounds = rounds or _rounds(copy)
    if not _difference(wanted[0], found[0]) <= _least(rounds):
        return "its outputs differ"
    compared = gradients and not rounds
    if compared and not _difference(wanted[1], found[1]) <= LEAST_DIFFERENCE_GRADIENTS:
        return "its gradients differ"
    return None


def beside(model: nn.Module) -> Callable[[Tensor], Any]:
    """`model` in evaluation, run where its images `[N, C, H, W]` are, for a network that is trained
    on them: in channels_last where they are and where the model bears that, which the first such
    batch tells."""
    started = False
    layout: torch.memory_format | None = None

    def run(images: Tensor) -> Any:
        nonlocal started, layout
        if not started:
            model.eval()
            started = True
        model.to(images.device)
        if images.is_contiguous():
            return model(images)
        if layout is None:
            against = against_channels_last(model, images[:2], gradients=False)
            layout = torch.channels_last if against is None else torch.contiguous_format
            lay_out(model, layout)
        return model(images.contiguous(memory_format=layout))

    return run


def same_outputs(one: nn.Module, other: nn.Module, images: Tensor) -> bool:
    """Whether two networks in evaluation give the same for `images`, up to orders of adding up."""
    with evaluating(one), evaluating(other):
        wanted, found = (_answer(model, images, False)[0] for model in (one, other))
    return _difference(wanted, found) <= _least(_rounds(one))


def backward(model: nn.Module, images: Tensor) -> list[Tensor]:
    """One pass forward and backward from the sum of squares of all outputs, which it returns."""
    outputs = [out for out in tensors_of(model(images)) if out.is_floating_point()]
    total = torch.stack([out.float().square().mean() for out in outputs]).sum()
    if total.requires_grad:
        torch.autograd.backward(total)
    return [out.detach() for out in outputs]


def _rounds(model: nn.Module) -> bool:
    return any(map(rounds_activation, model.modules()))


def _least(rounds: bool) -> float:
    return LEAST_DIFFERENCE_ROUNDED if rounds else LEAST_DIFFERENCE


def _answer(model: nn.Module, images: Tensor, gradients: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients."""
    if not gradients:
        with torch.no_grad():
            return list(tensors_of(model(images))), []
    model.zero_grad()
    outputs = backward(model, images)
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return outputs, found


def _difference(wanted: list[Tensor], found: list[Tensor]) -> float:
    """Norm of the difference over the norm; infinite where shapes differ."""
    if [t.shape for t in wanted] != [t.shape for t in found]:
        return float("inf")
    error = sum(
        float((a.double() - b.double()).square().sum()) for a, b in zip(wanted, found, strict=True)
    )
    size = sum(float(a.double().square().sum()) for a in wanted)
    return (error / size) ** 0.5 if size else float(error > 0)
