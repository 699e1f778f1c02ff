"""Preprocessing of other libraries as a bundle keeps it, where the two compute the same."""

from __future__ import annotations

from typing import Any

from vcompress.bench.bundle import Preprocess
from vcompress.bench.errors import UserError

from ..models.huggingface import preprocess_from
from ..models.pretrained import of_torchvision


def preprocess_of(processor: Any) -> Preprocess:
    """The preprocessing that a Hugging Face image processor or a torchvision preset describes.

    Args:
        processor: such as `ViTImageProcessor`, or `ResNet18_Weights.DEFAULT.transforms()`. A
            `Preprocess` is handed back.

    Raises:
        UserError: steps that a bundle cannot describe: another scale than 1/255, a crop without a
            resize, another filter.
    """
    if isinstance(processor, Preprocess):
        return processor
    if hasattr(processor, "crop_size") and hasattr(processor, "resize_size"):
        return of_torchvision(processor)
    if hasattr(processor, "image_mean") and hasattr(processor, "to_dict"):
        return preprocess_from(processor.to_dict(), type(processor).__name__)
    raise UserError(
        f"preprocess: got a {type(processor).__name__}; expected bench.Preprocess(size=(224, 224), "
        "...), an image processor of transformers, or the transforms() of torchvision's weights."
    )
