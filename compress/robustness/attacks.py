"""Adversarial examples: FGSM and PGD.

FGSM: Goodfellow et al.: Explaining and Harnessing Adversarial Examples, 2015, arXiv:1412.6572.
PGD: Madry et al.: Towards Deep Learning Models Resistant to Adversarial Attacks, 2018,
arXiv:1706.06083.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from vcompress.export.modes import evaluating

Attack = Literal["fgsm", "pgd"]
Loss = Callable[[Tensor, Tensor], Tensor]


def attacked(
    model: nn.Module, images: Tensor, targets: Tensor, *, kind: Attack, epsilon: float,
    steps: int, mean: Sequence[float], std: Sequence[float], loss: Loss,
) -> Tensor:  # fmt: skip
    """Images within `epsilon` of each pixel, on its scale of 0 to 1, that raise the loss.

    `fgsm` is one step of that size. `pgd` starts at random and takes `steps` of the size
    2.5 epsilon / steps, brought back each time. Pixels stay valid. The network is asked in eval
    mode, so its batch norms do not learn from the attack's passes, and is left as it was, without
    gradients.

    Args:
        images: `[B, C, H, W]`, normalised with `mean` and `std`.
        targets: `[B, ...]`, as `loss` takes them.
        loss: what is raised, from outputs `[B, K]` and targets to a scalar.

    Returns:
        `[B, C, H, W]`, normalised, detached.
    """
    scale, shift = (
        torch.tensor(v, device=images.device, dtype=images.dtype).view(1, -1, 1, 1)
        for v in (std, mean)
    )
    reach, lowest, highest = epsilon / scale, -shift / scale, (1 - shift) / scale
    low, high = (images - reach).clamp_min(lowest), (images + reach).clamp_max(highest)
    found = images
    if kind == "pgd":
        found = torch.clamp(images + reach * (2 * torch.rand_like(images) - 1), low, high)
    step = reach if kind == "fgsm" else 2.5 * reach / steps
    with evaluating(model), torch.enable_grad():
        for _ in range(1 if kind == "fgsm" else steps):
            found = found.detach().requires_grad_()
            # Only the slope's sign counts, so a mean serves as well as a sum.
            (slope,) = torch.autograd.grad(loss(model(found).float(), targets), found)
            found = torch.clamp(found.detach() + step * slope.sign(), low, high)
    return found.detach()
