"""Augmentation, mixing and balance: drawn from (seed, epoch, image), and in the right amounts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vcompress.bench.bundle import Preprocess
from vcompress.bench.errors import UserError
from vcompress.compress.data.augment import Augment, Mix, crops, image_transform, seeded
from vcompress.compress.data.loader import Data


def every(data: Data, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    found = list(data.loader("train", 8, train=True, **options))
    return torch.cat([images for images, _ in found]), torch.cat([labels for _, labels in found])


@pytest.mark.parametrize(
    "change",
    [
        {"augment": "rand"}, {"augment": "trivial"}, {"erase": 0.5}, {"mixup": 0.4},
        {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0, "augment": "rand", "erase": 0.5},
        {"balanced": True, "augment": "affine"},
    ],
)  # fmt: skip
def test_an_epoch_is_the_same_whatever_was_drawn_before_and_whoever_loads(
    tiny_data: Callable[..., Data], change: dict[str, Any]
) -> None:
    data = replace(tiny_data(), **change)
    torch.manual_seed(1)
    images, labels = every(data, epoch=2)
    torch.manual_seed(99)
    for workers in (0, 2):
        again, same = every(data, epoch=2, workers=workers)
        assert torch.equal(images, again) and torch.equal(labels, same)
    assert not torch.equal(images, every(data, epoch=3)[0])
    assert not torch.equal(images, every(tiny_data(), epoch=2)[0])
    assert images.shape == (40, 3, 16, 16)


@pytest.mark.parametrize("kind", ["rand", "trivial", "affine", "crop-flip"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_augmentation_takes_colour_and_grey(kind: Any, mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (96, 80, 3)).astype(np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    for size in ((32, 32), (72, 72)):
        transform = image_transform(kind, size, erase=1.0)
        assert transform is not None
        for seed in range(20):
            with seeded(seed):
                found = transform(image)
            assert found.mode == mode
            assert (
                found.size == ((72, 72) if crops(kind, size) else (80, 96)) or kind == "crop-flip"
            )


def test_small_images_are_neither_mirrored_nor_cropped() -> None:
    assert [crops(k, (64, 64)) for k in ("auto", "rand", "trivial")] == [False] * 3  # type: ignore[arg-type]
    assert [crops(k, (65, 65)) for k in ("auto", "rand", "trivial")] == [True] * 3  # type: ignore[arg-type]
    assert image_transform("none", (32, 32)) is None


def test_erasing_paints_one_rectangle_in_the_mean_colour_as_often_as_asked() -> None:
    white = Image.new("RGB", (20, 20), "white")
    transform = image_transform("none", (20, 20), erase=0.25, fill=(0.2, 0.4, 0.6))
    assert transform is not None
    shares = []
    for seed in range(400):
        with seeded(seed):
            found = np.asarray(transform(white))
        erased = (found == (51, 102, 153)).all(-1)
        assert ((found == 255).all(-1) | erased).all()
        rows, columns = erased.any(1).sum(), erased.any(0).sum()
        assert erased.sum() == rows * columns
        shares.append(erased.mean())
    assert np.mean(np.array(shares) > 0) == pytest.approx(0.25, abs=0.06)
    assert max(shares) < 0.4
    assert np.asarray(white).min() == 255


def test_mixup_adds_the_neighbour_in_the_share_that_the_labels_say() -> None:
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 6, 6).contiguous()
    with seeded(3):
        mixed, soft = Mix(0.8, 0.0, 5)(images, torch.arange(4))
    assert soft.shape == (4, 5)
    assert torch.allclose(soft.sum(1), torch.ones(4))
    share = float(soft[1, 1])
    assert 0 < share < 1
    assert torch.allclose(mixed[1], torch.full((3, 6, 6), share * 1 + (1 - share) * 0))
    assert float(soft[1, 0]) == pytest.approx(1 - share)


def test_cutmix_pastes_the_neighbours_rectangle_in_the_share_that_the_labels_say() -> None:
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 10, 10).contiguous()
    for seed in range(5):
        with seeded(seed):
            mixed, soft = Mix(0.0, 1.0, 5)(images, torch.arange(4))
        assert float((mixed[2, 0] == 2).float().mean()) == pytest.approx(float(soft[2, 2]))
        assert float((mixed[2, 0] == 1).float().mean()) == pytest.approx(float(soft[2, 1]))


def test_mixing_changes_training_batches_alone(tiny_data: Callable[..., Data]) -> None:
    plain, mixed = tiny_data(), replace(tiny_data(), mixup=0.5)
    assert every(mixed)[1].dtype == torch.float32
    assert every(mixed)[1].shape == (40, 3)
    for (a, b), (c, d) in zip(plain.loader("val", 4), mixed.loader("val", 4), strict=True):
        assert torch.equal(a, c) and torch.equal(b, d)


def skewed(data: Data) -> Data:
    """Of the three classes with 14 images each: 14, 4 and 2."""
    labels, train = data.dataset.targets, data.dataset.splits["train"]
    kept = np.concatenate([train[labels[train] == k][:n] for k, n in enumerate((14, 4, 2))])
    splits = {**data.dataset.splits, "train": np.sort(kept)}
    return replace(data, dataset=replace(data.dataset, splits=splits))


def test_balance_shows_each_class_equally_often_and_copies_augmented_anew(
    tiny_data: Callable[..., Data],
) -> None:
    data = replace(skewed(tiny_data(augment="affine")), balanced=True)
    counts = np.zeros(3, int)
    for epoch in range(3):
        images, labels = zip(*data.loader("train", 20, train=True, epoch=epoch), strict=True)
        found = torch.cat(labels)
        assert len(found) == 20
        counts += np.bincount(found.numpy(), minlength=3)
        assert torch.unique(torch.cat(images), dim=0).shape[0] == 20
    assert counts.tolist() == [20, 20, 20]


def test_balance_uses_every_image_of_a_rare_class_before_any_comes_again(
    tiny_data: Callable[..., Data],
) -> None:
    data = replace(skewed(tiny_data()), balanced=True)
    rare = [
        k for k in data._order(data.dataset.splits["train"], 0) if data.dataset.targets[k % 60] == 2
    ]
    images = [k % 60 for k in rare]
    assert len(rare) in (6, 7)
    assert sorted(k // 60 for k in rare)[:6] == [0, 0, 1, 1, 2, 2]
    assert max(images.count(i) for i in images) - min(images.count(i) for i in images) <= 1


def test_a_training_crop_is_the_input_as_it_is(tiny_data: Callable[..., Data]) -> None:
    """Test images are resized to 96 and lose their border; a crop that was drawn is kept whole."""
    data = tiny_data()
    big = Preprocess((80, 80), resize=96, mean=(0.0,) * 3, std=(1.0,) * 3)
    data = replace(data, preprocess=big, augment="crop-flip")
    from vcompress.compress.data.loader import _Images, _mix

    source = _Images(data, 0, data._augmentation())
    found, _ = source[5]  # type: ignore[misc]
    transform = data._augmentation()
    assert transform is not None
    with seeded(_mix(0, 0, 5)):
        expected = np.asarray(transform(data.dataset.image(5), None)[0])
    assert np.allclose(found[0].numpy(), expected.transpose(2, 0, 1) / 255, atol=1e-6)


@pytest.mark.parametrize("kind", ["affine", "crop-flip"])
def test_four_channels_are_augmented_with_the_colours(kind: Augment) -> None:
    image = Image.new("RGBA", (80, 80), (10, 20, 30, 255))
    change = image_transform(kind, (96, 96), 1.0, (0.2, 0.4, 0.6, 0.8))
    assert change is not None
    torch.manual_seed(0)
    found = np.asarray(change(image)).reshape(-1, 4)
    assert (found == (51, 102, 153, 204)).all(1).sum() > 20  # the rectangle that was erased
    with pytest.raises(UserError, match="--augment rand changes colours"):
        image_transform("rand", (96, 96), 0.0, (0.5,) * 4)
