"""Networks built for images of three channels, fitted to another number, as timm does it."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

log = logging.getLogger(__name__)

IN_CHANS = "in_chans"
KEYS = (IN_CHANS, "in_channels", "input_channels", "num_channels", "channels")
"""Names under which factories take the number of an image's channels."""
_RGB = 3


def argument(parameters: Mapping[str, inspect.Parameter], channels: int) -> dict[str, int]:
    """The argument by which a factory is told the number of channels; none where it is three by
    default. `in_chans` where it has none for it: then the first convolution is fitted.

    A parameter with another default than 3 means something else, such as a width.
    """
    for key in KEYS:
        if key in parameters and parameters[key].default in (_RGB, inspect.Parameter.empty):
            needed = channels != parameters[key].default
            return {key: channels} if needed else {}
    return {} if channels == _RGB else {IN_CHANS: channels}


def fit_first(model: nn.Module, channels: int) -> nn.Module:
    """Give the first convolution over three channels `channels` inputs, with weights of the same
    distribution; in place. A network without one stays as it is."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            if module.in_channels == channels:
                break
            if module.in_channels == _RGB and module.groups == 1:
                weight = module.weight.detach()
                repeated = weight.repeat(1, math.ceil(channels / _RGB), 1, 1)[:, :channels]
                module.weight = nn.Parameter(repeated.clone())
                module.in_channels = channels
                break
    return model


def fitted(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors`, with the one kernel over three channels fitted to that of the network `own`.

    For one channel the weights are summed: a grey image as three equal channels gives the same.
    For more they are repeated, and scaled so that the sum over equal channels stays.
    """
    found = dict(tensors)
    other = [n for n, t in tensors.items() if n in own and t.shape != own[n].shape and t.ndim == 4]
    kernels = [
        n
        for n in other
        if tensors[n].shape[1] == _RGB
        and own[n].ndim == 4
        and own[n].shape[:1] + own[n].shape[2:] == tensors[n].shape[:1] + tensors[n].shape[2:]
    ]
    if len(kernels) == 1:
        (name,) = kernels
        channels = own[name].shape[1]
        found[name] = _kernel(tensors[name], channels)
        log.warning("%s: its weights over 3 channels are fitted to %d", name, channels)
    return found


def _kernel(weight: Tensor, channels: int) -> Tensor:
    """`[O, 3, h, w]` as `[O, channels, h, w]`, timm's `adapt_input_conv`."""
    values = weight.float()
    if channels == 1:
        return values.sum(1, keepdim=True).to(weight.dtype)
    repeated = values.repeat(1, math.ceil(channels / _RGB), 1, 1)[:, :channels]
    return (repeated * (_RGB / channels)).to(weight.dtype)


def check(kwargs: Mapping[str, Any]) -> bool:
    """Whether the numbers of channels in arguments from elsewhere can be ones."""
    given = [kwargs[key] for key in KEYS if key in kwargs]
    return all(type(value) is int and 1 <= value <= 4096 for value in given)
