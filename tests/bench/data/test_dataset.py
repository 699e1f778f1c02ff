"""Data sets: splits that a seed fixes for good, and sources that cannot be used."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vcompress.bench.bundle import Preprocess
from vcompress.bench.data.dataset import Dataset, batches, watched
from vcompress.bench.data.splits import SPLITS, split_by_seed
from vcompress.bench.errors import UserError
from vcompress.bench.tasks import open_dataset


def assert_a_partition(dataset: Dataset) -> None:
    every = np.concatenate([dataset.splits[name] for name in SPLITS])
    assert sorted(every.tolist()) == list(range(len(dataset.targets)))


def test_the_digits_are_split_for_good() -> None:
    digits = open_dataset("digits")
    assert [len(digits.splits[name]) for name in SPLITS] == [1259, 179, 359]
    assert_a_partition(digits)
    assert digits.classes == tuple("0123456789")
    # These never change: the numbers of every report rest on them.
    assert digits.splits["test"][:8].tolist() == [10, 16, 28, 31, 34, 35, 38, 39]
    assert digits.splits["val"][:5].tolist() == [0, 4, 23, 26, 47]
    assert digits.fingerprint == open_dataset("digits", seed=0).fingerprint
    assert digits.fingerprint != open_dataset("digits", seed=1).fingerprint
    image = digits.image(0)
    assert image.size == (8, 8)
    assert np.asarray(image)[0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]


def test_splits_are_stratified_disjoint_and_complete() -> None:
    labels = np.repeat([0, 1, 2], [10, 50, 100])
    keys = [f"{n}.png" for n in range(160)]
    parts = split_by_seed(keys, labels, ["a", "b", "c"], seed=3)
    counts = {name: np.bincount(labels[parts[name]]).tolist() for name in SPLITS}
    assert counts == {"train": [7, 35, 70], "val": [1, 5, 10], "test": [2, 10, 20]}
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(160))
    again = split_by_seed(keys, labels, ["a", "b", "c"], seed=3)
    other = split_by_seed(keys, labels, ["a", "b", "c"], seed=4)
    assert all(np.array_equal(parts[name], again[name]) for name in SPLITS)
    assert not np.array_equal(parts["test"], other["test"])


def test_an_added_image_moves_hardly_any_other_one() -> None:
    labels = np.zeros(100, np.int64)
    keys = [f"{n}.png" for n in range(100)]
    before = {keys[i] for i in split_by_seed(keys, labels, ["a"], 0)["test"]}
    keys = ["new.png", *keys]
    after = {keys[i] for i in split_by_seed(keys, np.zeros(101, np.int64), ["a"], 0)["test"]}
    assert len(before & after) >= 19


def test_class_folders_are_split_by_seed(image_folder: Callable[..., Path]) -> None:
    folder = image_folder(red=20, green=10)
    data = open_dataset(str(folder))
    assert data.classes == ("green", "red")
    assert [len(data.splits[name]) for name in SPLITS] == [21, 3, 6]
    assert_a_partition(data)
    again = open_dataset(str(folder))
    assert again.fingerprint == data.fingerprint
    assert np.array_equal(again.splits["test"], data.splits["test"])
    assert open_dataset(str(folder), seed=1).fingerprint != data.fingerprint
    assert data.record()["splits"] == {"train": 21, "val": 3, "test": 6}
    (folder / "red" / "000.png").unlink()
    assert open_dataset(str(folder)).fingerprint != data.fingerprint


def test_the_split_does_not_depend_on_where_the_folder_lies(
    image_folder: Callable[..., Path],
) -> None:
    one = open_dataset(str(image_folder("one", red=9, green=9)))
    two = open_dataset(str(image_folder("two", red=9, green=9)))
    assert one.fingerprint == two.fingerprint


def test_train_and_val_folders_are_taken_as_they_are(image_folder: Callable[..., Path]) -> None:
    image_folder("set/train", red=20, green=20)
    folder = image_folder("set/val", red=5, green=6).parent
    data = open_dataset(str(folder))
    # val/ is what is measured on; what chooses the best epoch comes out of train/.
    assert [len(data.splits[name]) for name in SPLITS] == [36, 4, 11]
    assert data.splits["test"].min() >= 40
    assert data.splits["val"].max() < 40
    assert_a_partition(data)
    image_folder("set/test", red=2, green=3)
    data = open_dataset(str(folder))
    assert [len(data.splits[name]) for name in SPLITS] == [40, 11, 5]
    assert_a_partition(data)


def test_a_wrong_source_is_named(
    image_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"'digit': no such folder.*Did you mean 'digits'"):
        open_dataset("digit")
    with pytest.raises(UserError, match=r"no such folder. Expected digits, a folder of class"):
        open_dataset(str(tmp_path / "nowhere"))
    (tmp_path / "hollow").mkdir()
    with pytest.raises(UserError, match="found 0 class folders; expected one folder for each"):
        open_dataset("hollow")
    image_folder("lone", red=4)
    with pytest.raises(UserError, match="found 1 class folders"):
        open_dataset("lone")


def test_an_empty_class_is_named(image_folder: Callable[..., Path]) -> None:
    folder = image_folder(red=4, green=0)
    with pytest.raises(UserError, match="green: no images in this class folder"):
        open_dataset(str(folder))
    (folder / "green" / "notes.txt").write_text("none")
    with pytest.raises(UserError, match="green: no images in this class folder"):
        open_dataset(str(folder))


def test_a_class_of_too_few_images_is_named(image_folder: Callable[..., Path]) -> None:
    few = open_dataset(str(image_folder(red=4, green=2)))
    assert few.undivided.startswith("class 'green' has 2 images; a split needs at least 3")
    assert [len(few.splits[name]) for name in SPLITS] == [0, 0, 6]  # to measure on
    data = open_dataset(str(image_folder("least", red=3, green=3)))
    assert [len(data.splits[name]) for name in SPLITS] == [2, 2, 2]


def test_train_without_val_and_other_classes_are_named(image_folder: Callable[..., Path]) -> None:
    folder = image_folder("set/train", red=4, green=4).parent
    with pytest.raises(UserError, match=r"found train/ alone.*Add val/ or test/.*or give .*train"):
        open_dataset(str(folder))
    image_folder("set/val", red=4, blue=4)
    with pytest.raises(UserError, match=r"different class folders \(blue, green\)"):
        open_dataset(str(folder))


def test_hidden_folders_and_other_files_are_left_out(image_folder: Callable[..., Path]) -> None:
    folder = image_folder(red=4, green=4)
    (folder / ".cache").mkdir()
    (folder / "red" / "labels.csv").write_text("x")
    (folder / "red" / "deeper").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "red" / "deeper" / "UPPER.JPG", "jpeg")
    assert open_dataset(str(folder)).targets.tolist() == [0] * 4 + [1] * 5


def test_a_file_name_that_is_not_utf8_is_taken(image_folder: Callable[..., Path]) -> None:
    folder = image_folder(red=4, green=4)
    odd = os.fsencode(folder) + b"/red/caf\xe9.png"
    os.rename(folder / "red" / "000.png", odd)  # noqa: PTH104 (bytes)
    data = open_dataset(str(folder))
    assert len(data.targets) == 8
    assert all(data.image(i).size == (16, 16) for i in range(8))


def test_a_class_name_that_cannot_be_shown_is_refused(image_folder: Callable[..., Path]) -> None:
    folder = image_folder(red=4, green=4)
    (folder / "red").rename(folder / "re\x1b[31md")
    with pytest.raises(UserError, match=r"'re\\x1b\[31md' is not printable; rename it"):
        open_dataset(str(folder))


def test_batches_are_in_order_and_the_last_one_is_shorter(
    image_folder: Callable[..., Path],
) -> None:
    data = open_dataset(str(image_folder(red=20, green=10)))
    found = list(batches(data, "train", Preprocess((8, 8)), 8))
    assert [images.shape for images, _ in found] == [(8, 3, 8, 8)] * 2 + [(5, 3, 8, 8)]
    labels = np.concatenate([labels for _, labels in found])
    assert np.array_equal(labels, data.targets[data.splits["train"]])


def test_an_unreadable_image_is_named_when_it_is_reached(
    image_folder: Callable[..., Path],
) -> None:
    folder = image_folder(red=4, green=4)
    for file in (folder / "red").iterdir():
        file.write_text(f"no image {file.name}")
    data = open_dataset(str(folder))
    with pytest.raises(UserError, match=r"red/\d+\.png: cannot be read as an image"):
        list(batches(data, "test", Preprocess((8, 8)), 8))


def test_a_copy_in_two_divided_folders_is_refused_and_named(
    image_folder: Callable[..., Path],
) -> None:
    image_folder("set/train", red=8, green=8)
    folder = image_folder("set/val", red=4, green=4).parent
    assert open_dataset(str(folder)).splits["test"].size == 8
    copy = folder / "val" / "green" / "again.png"
    copy.write_bytes((folder / "train" / "red" / "003.png").read_bytes())
    with pytest.raises(UserError) as caught:
        open_dataset(str(folder))
    for part in ("train/red/003.png", "val/green/again.png", "train/ and val/ overlap", "Remove"):
        assert part in str(caught.value)


def test_copies_in_one_folder_are_all_trained_on(image_folder: Callable[..., Path]) -> None:
    folder = image_folder(red=12, green=12)
    before = open_dataset(str(folder))
    paths = sorted(p for p in folder.rglob("*.png"))  # the order of the data set
    held_out = [int(before.splits[name][0]) for name in ("val", "test")]
    for number in held_out:
        (folder / "red" / f"z{number}.png").write_bytes(paths[number].read_bytes())
    data = open_dataset(str(folder))
    names = sorted(p for p in folder.rglob("*.png"))
    trained = {names[i].read_bytes() for i in data.splits["train"]}
    assert {paths[n].read_bytes() for n in held_out} <= trained
    for name in ("val", "test"):
        assert not {names[i].read_bytes() for i in data.splits[name]} & trained
    assert_a_partition(data)


def test_a_folder_of_copies_alone_is_refused(image_folder: Callable[..., Path]) -> None:
    folder = image_folder(red=6, green=6)
    for file in folder.rglob("*.png"):
        Image.new("RGB", (8, 8)).save(file)
    found = open_dataset(str(folder))
    assert re.match(r"Nothing is left for val: 1?\d images are there more than", found.undivided)
    assert [len(found.splits[name]) for name in SPLITS] == [0, 0, 12]


def test_only_files_that_may_be_copies_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vcompress.bench.data import duplicates

    contents = [b"a" * 9000 + b"x", b"b" * 9000 + b"y", b"a" * 9000 + b"x", b"c" * 7, b"d" * 8]
    paths = [tmp_path / f"{n}" for n in range(5)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    read: list[tuple[str, int | None]] = []
    original = duplicates._digest

    def counted(path: Path, last_bytes: int | None) -> bytes | None:
        read.append((path.name, last_bytes))
        return original(path, last_bytes)

    monkeypatch.setattr(duplicates, "_digest", counted)
    sizes = [len(c) for c in contents]
    assert duplicates.repeated_across(paths, sizes, [0, 0, 1, 0, 1]) == [[0, 2]]
    assert read == [("0", 4096), ("1", 4096), ("2", 4096), ("0", None), ("2", None)]
    assert duplicates.repeated_across(paths, sizes, [0, 0, 0, 1, 1]) == []


def test_unreadable_images_are_skipped_counted_and_named_when_asked(
    image_folder: Callable[..., Path],
) -> None:
    folder = image_folder(red=10, green=10)
    plain = open_dataset(str(folder))
    bad = int(plain.splits["test"][1])
    path = sorted(folder.rglob("*.png"))[bad]
    path.write_bytes(path.read_bytes()[:200])
    data = open_dataset(str(folder), on_bad_image="skip")
    found = list(batches(data, "test", Preprocess((8, 8)), 3))
    assert [len(labels) for _, labels in found] == [2, 1]
    assert all(len(images) == len(labels) for images, labels in found)
    assert list(data.bad_images) == [bad]
    assert "cannot be read as an image" in data.bad_images[bad]
    assert path.name in data.bad_images[bad]
    assert data.record()["on_bad_image"] == "skip" and "on_bad_image" not in plain.record()


# torchvision's own data sets


def test_the_hash_of_watched_images_is_over_all_their_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (397, 331, 3), dtype=np.uint8)
    colours = Image.fromarray(pixels)
    images = [colours.convert(mode) for mode in ("RGB", "L", "1", "P", "RGBA", "CMYK")]
    images += [Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), colours.crop((0, 0, 7, 5))]
    whole = open_dataset("digits")
    dataset, hashed = watched(replace(whole, image=images.__getitem__))
    digest: Any = hashlib.sha256()
    for number, image in enumerate(images):
        assert dataset.image(number) is image
        palette = bytes(image.getpalette() or ()) if image.mode == "P" else b""
        digest.update(f"{image.mode} {image.size}\0".encode() + palette + image.tobytes())
        assert hashed() == digest.hexdigest()
    images[-1] = images[-1].copy()
    images[-1].putpixel((6, 4), (1, 2, 3))
    dataset, other = watched(replace(whole, image=images.__getitem__))
    for number in range(len(images)):
        dataset.image(number)
    assert other() != hashed()


def _with_masks(count: int, unreadable: int = -1) -> Dataset:
    """Images 8 x 4, whose mask is 1 on the right half, 255 in its last column and else 0."""
    mask = np.zeros((4, 8), np.uint8)
    mask[:, 4:], mask[:, 7] = 1, 255

    def read(i: int) -> Image.Image:
        if i == unreadable:
            raise UserError(f"mask {i}: cut short")
        return Image.fromarray(mask)

    return Dataset(
        "code", ("ground", "thing"), np.zeros((count, 0), np.uint8),
        {"test": np.arange(count)}, "0" * 64, lambda i: Image.fromarray(255 - mask),
        Preprocess(size=(4, 8)), mask=read, task="segmentation",
    )  # fmt: skip


def test_masks_come_at_the_size_of_the_input_and_are_never_interpolated() -> None:
    images, masks = next(batches(_with_masks(3), "test", Preprocess(size=(2, 4)), 8))
    assert images.shape == (3, 3, 2, 4) and masks.dtype == np.uint8
    assert masks.tolist() == [[[0, 0, 1, 255]] * 2] * 3
    cropped = Preprocess(size=(4, 4), resize=4)
    _, masks = next(batches(_with_masks(1), "test", cropped, 8))
    assert masks.tolist() == [[[0, 0, 1, 1]] * 4]  # the middle of the image, as its pixels are


def test_an_image_whose_mask_cannot_be_read_is_left_out_or_stops() -> None:
    dataset = replace(_with_masks(3, unreadable=1), on_bad_image="skip")
    _, masks = next(batches(dataset, "test", Preprocess(size=(4, 8)), 8))
    assert len(masks) == 2 and dataset.bad_images == {1: "mask 1: cut short"}
    with pytest.raises(UserError, match="cut short"):
        next(batches(_with_masks(3, unreadable=1), "test", Preprocess(size=(4, 8)), 8))
