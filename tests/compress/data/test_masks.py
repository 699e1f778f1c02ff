"""Images and masks move together, and images without a mask are of no class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vcompress.bench.bundle import Preprocess
from vcompress.bench.data.dataset import IGNORED, Dataset
from vcompress.bench.errors import UserError
from vcompress.compress.data.frequencies import class_weights
from vcompress.compress.data.loader import Data
from vcompress.compress.data.unlabelled import has_label, with_unlabelled

PLAIN = Preprocess(size=(32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)


def _dataset(count: int = 8) -> Dataset:
    """Pictures whose grey tells the class of each pixel: 80 a rectangle of class 1, 160 one of
    class 2, on a ground of 20, class 0."""

    def planes(i: int) -> np.ndarray:
        mask = np.zeros((48, 64), np.uint8)
        mask[8 + i : 24 + i, 8:40] = 1
        mask[20:40, 30 + i : 60] = 2
        return mask

    def image(i: int) -> Image.Image:
        return Image.fromarray(np.array([20, 80, 160], np.uint8)[planes(i)]).convert("RGB")

    return Dataset(
        "code", ("ground", "one", "two"), np.zeros((count, 0), np.uint8),
        {"train": np.arange(count), "val": np.arange(1), "test": np.arange(1)}, "0" * 64, image,
        PLAIN, mask=lambda i: Image.fromarray(planes(i)), task="segmentation",
    )  # fmt: skip


@pytest.mark.parametrize("augment", ["none", "affine", "crop-flip"])
def test_every_pixel_keeps_its_class_whatever_moves_it(augment: str) -> None:
    data = Data(_dataset(), PLAIN, augment=augment, seed=3)  # type: ignore[arg-type]
    seen, right, known = [], 0, 0
    for epoch in range(4):
        for images, masks in data.loader("train", 4, train=True, epoch=epoch):
            assert images.shape[1:] == (3, 32, 32) and masks.shape[1:] == (32, 32)
            assert masks.dtype == torch.uint8
            # Colours are jittered, so the nearest of three greys only mostly tells the class;
            # at borders greys are mixed.
            grey = images.mean(1) * 255
            guess = (grey[..., None] - torch.tensor([20.0, 80.0, 160.0])).abs().argmin(-1)
            inside = masks != IGNORED
            right += int((guess == masks)[inside].sum())
            known += int(inside.sum())
            seen.append(masks)
    assert right / known > (0.7 if augment == "crop-flip" else 0.93)
    stacked = torch.cat(seen)
    assert set(stacked.unique().tolist()) <= {0, 1, 2, IGNORED}
    moved = any(not torch.equal(stacked[0], m) for m in stacked[8::8])
    assert moved == (augment != "none") or augment == "none"
    assert (stacked == IGNORED).any() == (augment != "none")


def test_an_epoch_gives_the_same_again_in_workers() -> None:
    data = Data(_dataset(), PLAIN, seed=3)
    first = list(data.loader("train", 4, train=True, epoch=2))
    again = list(data.loader("train", 4, train=True, epoch=2, workers=2))
    for (images, masks), (other, others) in zip(first, again, strict=True):
        assert torch.equal(images, other) and torch.equal(masks, others)


@pytest.mark.parametrize("augment", ["rand", "trivial"])
def test_what_moves_the_image_alone_is_refused(augment: str) -> None:
    data = Data(_dataset(), PLAIN, augment=augment)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"--augment {augment} moves the pixels of images"):
        next(iter(data.loader("train", 4, train=True)))


def test_images_without_a_mask_train_nothing_by_themselves(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), (9, 9, 9)).save(tmp_path / "extra.png")
    dataset = with_unlabelled(_dataset(3), tmp_path)
    assert has_label(dataset.targets).tolist() == [True, True, True, False]
    assert dataset.splits["train"].tolist() == [0, 1, 2, 3]
    found = dataset.both(3, PLAIN)
    assert found is not None and (found[1] == IGNORED).all()


def test_rare_classes_weigh_more() -> None:
    data = Data(_dataset(1), PLAIN)
    weights = class_weights(data)
    counts = np.bincount(np.asarray(data.dataset.mask(0)).ravel(), minlength=3)  # type: ignore[misc]
    shares = counts / counts.sum()
    assert weights / weights[0] == pytest.approx(np.sqrt(shares[0] / shares), rel=1e-5)
    assert float((weights * shares).sum()) == pytest.approx(1, rel=1e-5)
    nothing = replace(data.dataset, mask=lambda i: Image.new("L", (4, 4), IGNORED))
    with pytest.raises(UserError, match="No pixel of the training masks has a class"):
        class_weights(Data(nothing, PLAIN))
