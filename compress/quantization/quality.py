"""Holds a quantised network against the float one: before calibration it is the same function, and
after it the outputs are near."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from vcompress.bench.errors import UserError

from ..models.faithful import IMAGES, check_same, outputs_of, sqnr_db, tensors_of
from .calibration import activation_quantizers
from .quantizers import ActivationQuantizer, WeightQuantizer, weight_of

LEAST_DB = 10.0
"""SQNR of the outputs below which something is broken: what int8 costs leaves 20 and more."""
COARSE_BITS = 5
"""Up to so many bits of a weight the rounding alone may cost that; training mends it."""


class Lost(UserError):
    """A calibrated network that is too far from the float one."""


@contextmanager
def rounding_only(model: nn.Module, members: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Only these quantisers round, none by default; afterwards each does as before."""
    chosen = set(members)
    found = [m for m in model.modules() if isinstance(m, (ActivationQuantizer, WeightQuantizer))]
    before = [m.enabled for m in found]
    try:
        for module in found:
            module.enabled = module in chosen
        yield
    finally:
        for module, enabled in zip(found, before, strict=True):
            module.enabled = enabled


def check_prepared(model: nn.Module, prepared: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Raise `NotTheSame` where a prepared network computes something else than the float one
    before anything is rounded, for inputs [B, C, H, W], of which a few are looked at."""
    few = [_few(prepared, images) for images in inputs]
    with rounding_only(prepared):
        check_same(model, prepared, few, "the traced network")


def check_level(made: nn.Module, level: float, images: Tensor, least_db: float) -> None:
    """Raise `Lost` where the SQNR of a calibrated network's outputs is below a limit.

    Args:
        level: the SQNR of the outputs on images like `images` [N, C, H, W], decibels.
    """
    if level >= least_db:
        return
    found = _first_below(made, images, least_db)
    raise Lost(
        f"calibration left an SQNR of {level:.1f} dB in the outputs, expected {least_db:g} dB and "
        f"more: the int8 network computes something else. {found} Keep that layer in floating "
        "point (keep_float), or calibrate with more images like those that it will see, or with "
        f"another observer. To go on all the same, give min_sqnr_db = {math.floor(level) - 1}."
        if math.isfinite(level)
        else f"calibration left outputs that are not finite or constant ({level} dB). {found} "
        "Look for weights or images that are not finite."
    )


def _first_below(made: nn.Module, images: Tensor, least_db: float) -> str:
    """A sentence about the first tensor that lost more than the outputs may."""
    images = _few(made, images)
    with rounding_only(made):
        wanted = _tensors(made, images)
    got = _tensors(made, images)
    levels = {name: sqnr_db(wanted[name], got[name]) for name in wanted if name in got}
    worst = next((name for name, db in levels.items() if db < least_db), None)
    if worst is None:
        return "No single tensor in it is as far off; the outputs alone are."
    return f"The first tensor that differs is {worst} ({levels[worst]:.1f} dB)."


def _tensors(made: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What is rounded and what quantised layers make, in order of execution."""
    found: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            for tensor in tensors_of(output)[:1]:
                found.setdefault(name, tensor.detach().clone())

        return hook

    named = {m: f"{name}, as it is rounded" for name, m in activation_quantizers(made).items()}
    named |= {
        module: f"the output of {path}"
        for path, module in made.named_modules()
        if weight_of(module) is not None
    }
    handles = [module.register_forward_hook(note(name)) for module, name in named.items()]
    try:
        outputs_of(made, [images])
    finally:
        for handle in handles:
            handle.remove()
    return found


def _few(network: nn.Module, images: Tensor) -> Tensor:
    """Enough of the images to see a difference, where the network is."""
    device = next((p.device for p in network.parameters()), images.device)
    return images[:IMAGES].to(device)
