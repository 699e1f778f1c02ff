"""Augmentation of training images: each alone, or with its mask, before preprocessing; then batches
(MixUp, CutMix).

All of it draws from torch's global generator; `seeded` gives that a seed of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.tv_tensors import Mask

from vcompress.bench.data.dataset import IGNORED
from vcompress.bench.errors import UserError

Augment = Literal["auto", "none", "affine", "crop-flip", "rand", "trivial"]
SMALL_PIXELS = 64
"""Images up to this side keep their size and are not mirrored: they may be digits or signs."""

_BILINEAR = v2.InterpolationMode.BILINEAR


def resolve(kind: Augment, size: Sequence[int]) -> Augment:
    """What `auto` means for inputs of `size` (height, width)."""
    if kind == "auto":
        return "affine" if max(size) <= SMALL_PIXELS else "crop-flip"
    return kind


def crops(kind: Augment, size: Sequence[int], masks: bool = False) -> bool:
    """Whether the augmented image has the network's size already; `masks` move with theirs."""
    kind = "crop-flip" if masks and kind == "auto" else resolve(kind, size)
    return kind == "crop-flip" or (kind in ("rand", "trivial") and max(size) > SMALL_PIXELS)


def image_transform(
    kind: Augment, size: Sequence[int], erase: float = 0.0, fill: Sequence[float] = (0.5,) * 3
) -> Callable[[Image.Image], Image.Image] | None:
    """From an image in the network's mode to a changed one; None where nothing is changed.

    RandAugment (arXiv:1909.13719, two operations of magnitude 9) and TrivialAugmentWide
    (arXiv:2103.10158) come after crop and mirror on images above 64 px, and stand alone below.

    Args:
        size: of the network's input, (height, width).
        erase: probability that a rectangle is erased (arXiv:1708.04896).
        fill: its colour, 0 to 1 for each channel.

    Raises:
        UserError: RandAugment or TrivialAugment for four channels.
    """
    kind = resolve(kind, size)
    if kind in ("rand", "trivial") and len(fill) == 4:
        raise UserError(
            f"--augment {kind} changes colours, which it cannot with four channels. Give affine, "
            f"crop-flip or none."
        )
    steps: list[Callable[[Image.Image], Image.Image]] = []
    if kind == "affine":
        steps.append(
            v2.RandomAffine(
                10, translate=(0.1, 0.1), scale=(0.9, 1.1), shear=5, interpolation=_BILINEAR
            )
        )
    if crops(kind, size):
        steps += [v2.RandomResizedCrop(list(size)), v2.RandomHorizontalFlip()]
    if kind == "rand":
        steps.append(v2.RandAugment(interpolation=_BILINEAR))
    if kind == "trivial":
        steps.append(v2.TrivialAugmentWide(interpolation=_BILINEAR))
    if erase:
        steps.append(_Erase(erase, tuple(round(255 * share) for share in fill)))
    if not steps:
        return None
    return steps[0] if len(steps) == 1 else v2.Compose(steps)


def image_and_mask_transform(
    kind: Augment, size: Sequence[int], erase: float = 0.0, fill: Sequence[float] = (0.5,) * 3
) -> Callable[[Image.Image, Image.Image], tuple[Image.Image, Image.Image]] | None:
    """As `image_transform`, moving an image and its mask (mode `L`) alike; None where nothing is
    changed. What comes in from outside the image is of no class.

    `auto` and `crop-flip` scale by 0.5 to 2, crop, mirror, and change brightness, contrast and
    saturation, as DeepLab and its successors are trained (arXiv:1706.05587).

    Raises:
        UserError: RandAugment and TrivialAugment, which move the image alone.
    """
    if kind in ("rand", "trivial"):
        raise UserError(
            f"--augment {kind} moves the pixels of images and not those of masks. Give crop-flip, "
            f"affine or none."
        )
    colour = tuple(round(255 * share) for share in fill)
    outside: dict[Any, Any] = {Image.Image: colour if len(colour) > 1 else colour[0], Mask: IGNORED}
    steps: list[Any] = []
    if kind == "affine":
        steps.append(
            v2.RandomAffine(
                10, translate=(0.1, 0.1), scale=(0.9, 1.1), shear=5, interpolation=_BILINEAR,
                fill=outside,
            )
        )  # fmt: skip
    elif crops(kind, size, masks=True):
        steps += [
            v2.ScaleJitter(tuple(size), scale_range=(0.5, 2.0)),
            v2.RandomCrop(list(size), pad_if_needed=True, fill=outside),
            v2.RandomHorizontalFlip(),
        ]
        if len(fill) == 3:
            steps.append(v2.ColorJitter(0.3, 0.3, 0.3))
    if not steps and not erase:
        return None
    moved = v2.Compose(steps) if steps else None
    erased = _Erase(erase, colour) if erase else None

    def change(image: Image.Image, mask: Image.Image) -> tuple[Image.Image, Image.Image]:
        if moved is not None:
            image, tensor = moved(image, Mask(np.array(mask)[None]))
            mask = Image.fromarray(tensor[0].numpy())
        return (image if erased is None else erased(image)), mask

    return change


class _Erase:
    """Random erasing before preprocessing: every network that is shown the image misses it."""

    def __init__(self, probability: float, fill: tuple[int, ...]) -> None:
        self.probability, self.fill = probability, fill
        self.box = v2.RandomErasing()

    def __call__(self, image: Image.Image) -> Image.Image:
        if float(torch.rand(())) >= self.probability:
            return image
        found = self.box.make_params([image])
        if found["v"] is None:  # no rectangle fitted in ten attempts
            return image
        left, top = found["j"], found["i"]
        image = image.copy()
        colour = self.fill if len(image.getbands()) == len(self.fill) else self.fill[0]
        image.paste(colour, (left, top, left + found["w"], top + found["h"]))
        return image


@dataclass(frozen=True)
class Mix:
    """MixUp (arXiv:1710.09412) or CutMix (arXiv:1905.04899), of both one by chance."""

    mixup: float
    cutmix: float
    """Parameter of the Beta distribution of each; 0 leaves it out."""
    classes: int

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images `[B, C, H, W]`, each mixed with its neighbour, and labels `[B, K] float32`.

        Labels are classes `[B] int64`, or shares `[B, K]` already.
        """
        labels = labels.float() if labels.ndim > 1 else labels
        kinds = [
            kind(alpha=alpha, num_classes=self.classes)
            for kind, alpha in ((v2.MixUp, self.mixup), (v2.CutMix, self.cutmix))
            if alpha
        ]
        chosen = kinds[int(torch.randint(len(kinds), ()))] if len(kinds) > 1 else kinds[0]
        mixed, soft = chosen(images, labels)
        return mixed, soft


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from `seed`, and leave torch's CPU generator as it was."""
    # torch.manual_seed would also queue a call for CUDA, with a formatted traceback: 3 ms.
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
