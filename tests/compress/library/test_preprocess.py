"""Preprocessing of other libraries, held against the bundle's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from vcompress.bench import IMAGENET, Preprocess
from vcompress.bench.data.preprocess import apply
from vcompress.bench.errors import UserError
from vcompress.compress import preprocess_of


def picture() -> Image.Image:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
    return small.resize((320, 240), Image.Resampling.BICUBIC)


def test_torchvisions_presets_compute_the_same() -> None:
    from torchvision.models import MobileNet_V2_Weights, ResNet18_Weights

    for weights in (ResNet18_Weights.IMAGENET1K_V1, MobileNet_V2_Weights.IMAGENET1K_V2):
        preset = weights.transforms()
        found = preprocess_of(preset)
        # It resizes with antialiasing as Pillow does, and rounds to 8 bits at the same place.
        np.testing.assert_allclose(apply(found, picture()), preset(picture()).numpy(), atol=0.02)
    assert preprocess_of(ResNet18_Weights.IMAGENET1K_V1.transforms()) == IMAGENET


@pytest.mark.parametrize("name", ["ViTImageProcessor", "MobileNetV2ImageProcessor"])
def test_processors_of_transformers_compute_the_same(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, name)()
    theirs = processor(picture(), return_tensors="np")["pixel_values"][0]
    ours = apply(preprocess_of(processor), picture())
    assert ours.shape == theirs.shape
    levels = np.abs(ours - theirs) * 255 * 0.5  # both have a deviation of 0.5
    assert float(levels.max()) <= 1.01


def test_a_processor_that_a_bundle_cannot_describe_is_refused() -> None:
    transformers = pytest.importorskip("transformers")
    with pytest.raises(UserError, match="scaled by"):
        preprocess_of(transformers.ViTImageProcessor(rescale_factor=1.0))
    with pytest.raises(UserError, match=r"got a int; expected bench.Preprocess"):
        preprocess_of(7)
    assert preprocess_of(IMAGENET) is IMAGENET
    small = preprocess_of(transformers.ViTImageProcessor(size={"height": 32, "width": 48}))
    assert small == Preprocess(size=(32, 48), mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize("size", [{"longest_edge": 384}, None])
def test_a_processor_of_another_kind_is_refused_by_name(size: Any) -> None:
    class Processor:
        image_mean = (0.5, 0.5, 0.5)

        def to_dict(self) -> dict[str, Any]:
            return {"size": size, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}

    with pytest.raises(UserError, match="Processor: cannot be understood"):
        preprocess_of(Processor())
