"""The training side's loaders: nothing depends on workers, processes or what ran before."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vcompress.bench.bundle import Preprocess
from vcompress.bench.data.dataset import batches
from vcompress.bench.errors import UserError
from vcompress.bench.tasks import open_dataset
from vcompress.compress.data.loader import Data, split_of


def every(data: Data, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    found = list(data.loader("train", 8, train=True, **options))
    return torch.cat([images for images, _ in found]), torch.cat([labels for _, labels in found])


def test_batches_have_the_shapes_of_the_docstring(tiny_data: Callable[..., Data]) -> None:
    data = tiny_data()
    loader = data.loader("train", 8, train=True)
    found = list(loader)
    assert len(loader) == len(found) == 5  # 42 images: the last two are left out
    assert all(images.shape == (8, 3, 16, 16) for images, _ in found)
    assert found[0][0].dtype == torch.float32
    assert found[0][1].dtype == torch.int64
    assert [len(labels) for _, labels in data.loader("val", 4)] == [4, 2]


def test_data_without_a_training_part_give_their_test_images(
    tiny_data: Callable[..., Data],
) -> None:
    data = tiny_data()
    assert [split_of(data.dataset, name) for name in ("train", "val")] == ["train", "val"]
    none = np.zeros(0, np.int64)
    splits = {"train": none, "val": none, "test": data.dataset.splits["test"]}
    alone = replace(data, dataset=replace(data.dataset, splits=splits))
    assert [split_of(alone.dataset, name) for name in ("train", "val")] == ["test", "test"]
    assert torch.equal(alone.example, data.images("test", 10**6)[:1])


def test_evaluation_sees_what_the_device_sees(tiny_data: Callable[..., Data]) -> None:
    data = tiny_data(augment="affine")
    ours = torch.cat([images for images, _ in data.loader("test", 5)]).numpy()
    device = np.concatenate([x for x, _ in batches(data.dataset, "test", data.preprocess, 7)])
    assert np.array_equal(ours, device)


@pytest.mark.parametrize("augment", ["none", "affine", "crop-flip", "auto"])
def test_an_epoch_is_the_same_whatever_was_drawn_before(
    tiny_data: Callable[..., Data], augment: str
) -> None:
    data = tiny_data(augment=augment)
    torch.manual_seed(1)
    first = every(data, epoch=3)
    torch.rand(7)
    again = every(data, epoch=3)
    other = every(data, epoch=4)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    assert first[0].shape == (40, 3, 16, 16)


def test_augmentation_changes_images_and_the_seed_changes_the_augmentation(
    tiny_data: Callable[..., Data],
) -> None:
    plain, moved = tiny_data(augment="none"), tiny_data(augment="affine")
    assert torch.equal(every(plain)[1], every(moved)[1])
    assert not torch.equal(every(plain)[0], every(moved)[0])
    assert not torch.equal(
        every(moved)[0], every(Data(moved.dataset, moved.preprocess, "affine", 1))[0]
    )


def test_an_augmented_epoch_leaves_the_random_state_alone(tiny_data: Callable[..., Data]) -> None:
    data = tiny_data(augment="affine")
    image = data.dataset.image(0)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    from vcompress.compress.data.loader import _Images

    _Images(data, 0, data._augmentation())._augmented(image, None, 0)
    assert torch.equal(torch.rand(3), expected)


def test_workers_give_the_same_images(tiny_data: Callable[..., Data]) -> None:
    data = tiny_data(augment="affine")
    alone, helped = every(data, epoch=1), every(data, epoch=1, workers=2)
    assert torch.equal(alone[0], helped[0]) and torch.equal(alone[1], helped[1])


def test_workers_take_a_data_set_with_functions_where_python_does_not_fork_by_itself(
    tiny_data: Callable[..., Data],
) -> None:
    """As from Python 3.14 on; the data sets that users name all hold such functions."""
    data = tiny_data()
    first = data.dataset.image(0)
    data = replace(data, dataset=replace(data.dataset, image=lambda _: first))
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        helped = every(data, workers=1)
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert torch.equal(helped[0], every(data)[0])


def test_two_processes_share_each_batch(tiny_data: Callable[..., Data]) -> None:
    data = tiny_data()
    whole = list(data.loader("train", 8, train=True))
    parts = [list(data.loader("train", 8, train=True, rank=r, world=2)) for r in (0, 1)]
    assert [len(p) for p in parts] == [5, 5]
    for (images, labels), a, b in zip(whole, *parts, strict=True):
        assert torch.equal(images[0::2], a[0]) and torch.equal(images[1::2], b[0])
        assert torch.equal(labels[0::2], a[1]) and torch.equal(labels[1::2], b[1])


def test_a_sample_of_a_folder_in_order_holds_several_classes(
    tiny_data: Callable[..., Data],
) -> None:
    data = tiny_data()
    train = data.dataset.splits["train"]
    in_order = train[np.argsort(data.dataset.targets[train], kind="stable")]
    splits = {**data.dataset.splits, "train": in_order}
    data = replace(data, dataset=replace(data.dataset, splits=splits))
    found = list(data.sample(8, 2))
    assert [len(images) for images, _ in found] == [8, 8]
    assert all(len(set(labels.tolist())) > 1 for _, labels in found)
    again = list(data.sample(8, 2))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(found, again, strict=True))


def test_two_processes_evaluate_each_image_once(tiny_data: Callable[..., Data]) -> None:
    data = tiny_data()
    sizes = [sum(len(b) for _, b in data.loader("val", 4, rank=r, world=2)) for r in (0, 1)]
    assert sizes == [3, 3]


def test_fewer_images_than_a_batch_make_one_batch(tiny_data: Callable[..., Data]) -> None:
    loader = tiny_data(per_class=4).loader("train", 64, train=True)
    assert [len(labels) for _, labels in loader] == [6]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["text", "float"])
def test_an_unreadable_image_raises_its_own_error_also_from_a_worker(
    image_folder: Callable[..., Path], workers: int, damage: str
) -> None:
    folder = image_folder(red=6, green=6)
    for file in (folder / "red").iterdir():
        if damage == "text":
            file.write_text("no image")
        else:
            from PIL import Image

            Image.fromarray(np.zeros((4, 4), np.float32)).save(file.with_suffix(".tif"))
            file.unlink()
    data = Data(open_dataset(str(folder)), Preprocess((8, 8)))
    expected = "cannot be read as an image" if damage == "text" else "no agreed range"
    with pytest.raises(UserError, match=expected) as caught:
        list(data.loader("train", 4, train=True, workers=workers))
    assert "Traceback" not in str(caught.value)


def test_an_example_and_images_spread_over_the_split(tiny_data: Callable[..., Data]) -> None:
    data = tiny_data()
    assert data.example.shape == (1, 3, 16, 16)
    assert data.images("test", 5).shape == (5, 3, 16, 16)
    assert data.images("test", 500).shape[0] == len(data.dataset.splits["test"]) == 12
    last = torch.from_numpy(next(iter(batches(data.dataset, "test", data.preprocess, 12)))[0][-1])
    assert torch.equal(data.images("test", 5)[-1], last)


def test_a_view_is_augmented_as_its_epoch_whatever_the_order(
    tiny_data: Callable[..., Data],
) -> None:
    data = tiny_data(augment="affine")
    rows = {
        (epoch, view): {
            int(n): image
            for images, _, samples in data.loader(
                "train", 8, train=True, epoch=epoch, view=view, samples=True
            )
            for n, image in zip(samples.indices, images, strict=True)
        }
        for epoch, view in ((3, None), (5, 3), (5, None))
    }
    both = set(rows[3, None]) & set(rows[5, 3])
    assert len(both) > 30 and list(rows[3, None]) != list(rows[5, 3])
    assert all(torch.equal(rows[3, None][n], rows[5, 3][n]) for n in both)
    assert not any(torch.equal(rows[5, None][n], rows[5, 3][n]) for n in both)
    # Without shuffling, for a pass over every image.
    ordered = [s.indices for _, _, s in data.loader("train", 8, view=3, samples=True)]
    assert torch.cat(ordered).tolist() == data.dataset.splits["train"].tolist()


def test_other_views_are_the_same_augmented_image_in_their_own_preprocessing(
    tiny_data: Callable[..., Data],
) -> None:
    plain = tiny_data(augment="affine")
    grey = Preprocess((16, 16), mean=(0.0,), std=(1.0,), channels="L")
    large = replace(plain.preprocess, size=(32, 24))
    data = replace(plain, views=(plain.preprocess, grey, large))
    images, _, samples = next(iter(data.loader("train", 8, train=True, samples=True)))
    assert torch.equal(images, next(iter(plain.loader("train", 8, train=True)))[0])
    assert torch.equal(samples.others[0], images)
    assert samples.others[1].shape == (8, 1, 16, 16) and samples.others[2].shape == (8, 3, 32, 24)
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    colours = images * 0.2 + 0.3
    assert torch.allclose(samples.others[1][:, 0], (colours * weights).sum(1), atol=0.01)
    # A grey student does not take the colours from its teacher.
    student = replace(plain, preprocess=grey, views=(plain.preprocess,))
    *_, samples = next(iter(student.loader("train", 8, train=True, samples=True)))
    assert torch.equal(samples.others[0], images)


def test_crops_are_as_large_as_the_largest_network_takes(tiny_data: Callable[..., Data]) -> None:
    data = tiny_data(augment="crop-flip")
    data = replace(data, views=(replace(data.preprocess, size=(48, 8)),))
    from vcompress.compress.data.loader import _Images

    images = _Images(data, 0, data._augmentation())
    cropped, _ = images._augmented(data.dataset.image(0), None, 0)
    assert cropped.size == (16, 48)
