"""Images for calibration, and others on which it is judged."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .loader import Data, spread
from .unlabelled import without_labels

log = logging.getLogger(__name__)

FLAG = "--calibration"
LARGE = 128 * 128
"""Pixels of an image that is not large."""


def in_parts(images: Tensor) -> tuple[Tensor, ...]:
    """Images `[N, C, H, W]` in batches of 64, or of 16 where they are large: with less memory for
    each tensor the C library gives back and maps less of it, a third of the time at 224 px."""
    return torch.split(images, 64 if images.shape[-1] * images.shape[-2] <= LARGE else 16)


def calibration_images(
    data: Data, folder: str, count: int, judging: int = 0, flag: str = FLAG
) -> tuple[Tensor, Tensor]:
    """Up to `count` inputs that set the ranges and up to `judging` others on which a repair must
    help, `[N, C, H, W] float32` each; the first again where there are too few for others.

    They come from `folder`, which the option `flag` named and whose images need no labels; else
    from the training and the validation images; else, where the data have no training part, from
    the images that are measured on.

    Raises:
        UserError: no such folder, no images in it, or one that cannot be read.
    """
    dataset = data.dataset
    if folder:
        unlabelled = without_labels(
            Path(folder), flag, data.classes, dataset.task, dataset.on_bad_image
        )
        data = replace(data, dataset=unlabelled)
    elif len(dataset.splits["train"]) and len(dataset.splits["val"]):
        ranges = data.images("train", count)
        return ranges, data.images("val", judging) if judging else ranges
    elif dataset.labelled:
        log.warning(
            "%s has no training part: calibrating on images that are measured on as well, without "
            "their labels; %s DIR takes others", dataset.source, FLAG,
        )  # fmt: skip
    chosen = spread(data.dataset.splits["test"], count + judging)
    others = spread(np.arange(len(chosen)), min(judging, len(chosen) // 3))
    parts = {"ranges": np.delete(chosen, others), "judging": chosen[others]}
    data = replace(data, dataset=replace(data.dataset, splits=parts))
    ranges = data.images("ranges", count)
    return ranges, data.images("judging", judging) if len(others) else ranges
