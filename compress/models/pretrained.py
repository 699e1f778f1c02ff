"""What torchvision and timm record of their pretrained weights: tensors, preprocessing, and what
their builders set beside them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vcompress.bench.bundle import Preprocess
from vcompress.bench.data.classes import imagenet_classes
from vcompress.bench.errors import EnvironmentLacks, UserError
from vcompress.export.modes import evaluating

from . import huggingface, segmentation

log = logging.getLogger(__name__)

TIMM = "timm:"
IMAGENET_CLASSES = 1000
_CHANGES_SCALE = ("googlenet", "inception_v3")
"""torchvision's networks whose weights came from another framework, with another normalisation."""
_FILTERS: dict[str, Literal["nearest", "bilinear", "bicubic"]] = {
    "nearest": "nearest", "bicubic": "bicubic",
}  # fmt: skip


def arguments(name: str) -> dict[str, Any]:
    """What torchvision's own builder sets where it is given weights, and which no tensor shows:
    `transform_input` brings images normalised as for ImageNet to the mean and deviation 0.5 that
    the weights of GoogLeNet and Inception were trained with."""
    return {"transform_input": True} if name in _CHANGES_SCALE else {}


def tensors(name: str, kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The pretrained tensors of a name of torchvision or timm.

    Args:
        kwargs: arguments of the network; timm fits positions and the first layer to them.

    Raises:
        EnvironmentLacks: they cannot be downloaded.
    """
    where = "its pretrained weights"
    try:
        if name.startswith(TIMM):
            import timm

            found = timm.create_model(name.removeprefix(TIMM), pretrained=True, **kwargs)
            return dict(found.state_dict())
        import torchvision

        weights = torchvision.models.get_model_weights(name).DEFAULT
        where = weights.url
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except Exception as error:  # every library raises its own kind when it is offline
        raise EnvironmentLacks(
            f"--weights default: {where} could not be had ({type(error).__name__}: {error}). "
            f"Give a file instead: --weights FILE.safetensors or FILE.pth."
        ) from error


def classes(name: str, count: int) -> tuple[str, ...] | None:
    """What the outputs of a torchvision's or timm's network with `count` of them usually are: the
    classes of ImageNet, with their wnids where timm is installed. None where nothing is known."""
    if count != IMAGENET_CLASSES or (":" in name and not name.startswith(TIMM)):
        return None
    try:
        return imagenet_classes()
    except EnvironmentLacks:  # without timm it is a name of torchvision's
        import torchvision

        return tuple(torchvision.models.get_model_weights(name).DEFAULT.meta["categories"])


def preprocess(name: str, weights: str | None, usual: Preprocess) -> Preprocess:
    """How images reach a network with weights: as its library records it, else `usual`.

    Small images, which `usual` does not crop, keep their size.

    Args:
        weights: as `build` takes them. torchvision's record is of its own weights alone; timm's
            training scripts take timm's for any.
    """
    if name.startswith(huggingface.PREFIX):
        return huggingface.preprocess(name) or usual
    if weights is None or segmentation.is_one(name):
        return usual
    found = None
    if name.startswith(TIMM):
        found = _of_timm(name.removeprefix(TIMM))
    elif weights == "default" and ":" not in name:
        import torchvision

        found = of_torchvision(torchvision.models.get_model_weights(name).DEFAULT.transforms())
    if found is None:
        return usual
    if usual.resize is None:
        found = replace(found, size=usual.size, resize=None)
    if found != usual:
        log.info("%s: the preprocessing of its pretrained weights is taken: %s", name, found)
    return found


def of_torchvision(preset: Any) -> Preprocess:
    """The preprocessing of torchvision's `weights.transforms()`.

    Raises:
        UserError: a resize to two sides before the crop.
    """
    crop, resize = (list(side) for side in (preset.crop_size, preset.resize_size))
    if len(resize) != 1:
        raise UserError(
            f"preprocess: the preset has resize_size = {resize}; a bundle can describe one number, "
            "the shorter side. Give bench.Preprocess(...), and train with it."
        )
    crop = crop * 2 if len(crop) == 1 else crop
    return Preprocess(
        size=(crop[0], crop[1]), resize=resize[0], mean=tuple(preset.mean), std=tuple(preset.std),
        interpolation=preset.interpolation.value,
    )  # fmt: skip


def _of_timm(name: str) -> Preprocess | None:
    """What `pretrained_cfg` says, as timm's `resolve_data_config` reads it."""
    try:
        from timm.models import get_pretrained_cfg
    except ImportError:
        return None  # building the network says what is missing
    cfg = get_pretrained_cfg(name)
    if cfg is None:
        return None
    height, width = cfg.input_size[-2:]
    whole = cfg.crop_mode == "squash" or height != width
    return Preprocess(
        size=(height, width),
        resize=None if whole else int(min(height, width) / cfg.crop_pct),
        mean=tuple(map(float, cfg.mean)),
        std=tuple(map(float, cfg.std)),
        interpolation=_FILTERS.get(cfg.interpolation, "bilinear"),
    )


def settle_transform(model: nn.Module, images: Tensor) -> bool:
    """Set `transform_input` of a GoogLeNet or an Inception as its weights were trained.

    No tensor says so, but the first batch norm holds the mean and the variance of what it was
    trained on: the choice under which `images` come nearer to them is right.

    Args:
        images: `[N, C, H, W]` like those of the training.

    Returns:
        the choice.
    """
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    distances = {}
    for choice in (True, False):
        model.transform_input = choice  # type: ignore[assignment]
        distances[choice] = _distance(model, norm, images)
    chosen = distances[True] <= distances[False]
    model.transform_input = chosen  # type: ignore[assignment]
    return chosen


def _distance(model: nn.Module, norm: nn.BatchNorm2d, images: Tensor) -> float:
    """Divergence of the normal distribution that `norm` holds from that of its inputs, nats."""
    seen: list[Tensor] = []
    hook = norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with evaluating(model), torch.no_grad():
            model(images)
    finally:
        hook.remove()
    assert norm.running_mean is not None and norm.running_var is not None
    mean, variance = seen[0].mean((0, 2, 3)), seen[0].var((0, 2, 3)) + norm.eps
    held = norm.running_var + norm.eps
    ratio = (variance + (mean - norm.running_mean).square()) / held
    return float((ratio - 1 - (variance / held).log()).mean()) / 2
