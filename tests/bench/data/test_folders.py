"""Folders as people have them: the names of splits, what systems leave behind, odd class names."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vcompress.bench.data.folders import find_images
from vcompress.bench.data.splits import SPLITS
from vcompress.bench.errors import UserError
from vcompress.bench.tasks import open_dataset

Make = Callable[..., Path]


def sizes(folder: Path) -> list[int]:
    data = open_dataset(str(folder))
    assert data.classes == ("green", "red")
    assert not data.drawn
    return [len(data.splits[name]) for name in SPLITS]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("Train", "Val"), [18, 2, 8]),
        (("training", "validation"), [18, 2, 8]),
        (("train", "valid"), [18, 2, 8]),
        (("TRAIN", "TEST"), [18, 2, 8]),
        (("seg_train", "seg_test"), [18, 2, 8]),
        (("train2017", "val2017"), [18, 2, 8]),
        (("train", "valid", "test"), [20, 8, 4]),
        (("Training Set", "Validation Set", "Test Set"), [20, 8, 4]),
        (("val", "test"), [0, 20, 8]),
        (("test",), [0, 0, 20]),
        (("validation",), [0, 0, 20]),
    ],
)
def test_the_usual_names_of_splits_are_no_classes(
    image_folder: Make, tmp_path: Path, names: tuple[str, ...], expected: list[int]
) -> None:
    written = ("train", "val", "test")  # other images in each
    tops = [
        image_folder(f"set/{other}", red=count, green=count).rename(tmp_path / name)
        for name, other, count in zip(names, written, (10, 4, 2), strict=False)
    ]
    for top in tops:
        top.rename(tmp_path / "set" / top.name)
    assert sizes(tmp_path / "set") == expected


def test_a_class_may_be_called_train(image_folder: Make) -> None:
    data = open_dataset(str(image_folder(train=10, bus=10)))
    assert data.classes == ("bus", "train")
    assert data.drawn
    assert [len(data.splits[name]) for name in SPLITS] == [14, 2, 4]


def test_splits_that_contradict_each_other_are_refused(image_folder: Make) -> None:
    image_folder("two/Train", red=4, green=4)
    folder = image_folder("two/training", red=4, green=4).parent
    with pytest.raises(UserError, match="Train/ and training/ both mean train"):
        open_dataset(str(folder))
    folder = image_folder("flat/train", red=4, green=4).parent
    (folder / "test").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "test" / "0.png")
    with pytest.raises(UserError, match="test: no class folders in it"):
        open_dataset(str(folder))


def test_parts_of_the_data_under_other_names_are_no_classes(image_folder: Make) -> None:
    image_folder("plants/color", leaf=4, root=4)
    folder = image_folder("plants/gray", leaf=4, root=4).parent
    with pytest.raises(UserError, match=r"color, gray hold the same folders \(leaf, root\)"):
        open_dataset(str(folder))
    assert open_dataset(str(folder / "color")).classes == ("leaf", "root")
    # Folders inside classes that differ, or beside images, are the classes' own.
    for place in ("set/cat/2023", "set/cat/2024", "set/dog/2023", "set/dog/2025"):
        image_folder(place, a=2)
    nested = open_dataset(str(folder.parent / "set"))
    assert nested.classes == ("cat", "dog") and len(nested.targets) == 8


def test_folders_beside_the_splits_are_left_out_and_counted(image_folder: Make) -> None:
    image_folder("set/train", red=4, green=4)
    folder = image_folder("set/val", red=2, green=2).parent
    image_folder("set/unsorted", red=3)
    data = open_dataset(str(folder))
    assert len(data.targets) == 12
    assert data.left_out == f"{folder}: left out: folders beside the splits (1)"


def test_what_systems_leave_beside_the_images_is_not_there(image_folder: Make) -> None:
    image_folder("set/train", red=10, green=10)
    folder = image_folder("set/val", red=4, green=4).parent
    before = open_dataset(str(folder))
    dark = Image.new("RGB", (8, 8))
    for odd in (
        "val/red/._000.png", "val/red/.ipynb_checkpoints/000-checkpoint.png",
        "val/green/@eaDir/000.png/SYNOPHOTO_THUMB_M.jpg", "val/__MACOSX/red/._000.png",
        "train/__MACOSX/green/000.png", "__MACOSX/train/red/000.png", "val/green/Thumbs.db",
        "val/desktop.ini",
    ):  # fmt: skip
        (folder / odd).parent.mkdir(parents=True, exist_ok=True)
        dark.save(folder / odd, "png")
    after = open_dataset(str(folder))
    assert after.fingerprint == before.fingerprint
    assert after.left_out == ""


def test_what_is_no_image_is_left_out_counted_and_named(image_folder: Make) -> None:
    folder = image_folder(red=10, green=10)
    for name in ("a.heic", "b.HEIC", "notes.txt", "LICENSE"):
        (folder / "red" / name).write_bytes(b"x")
    (folder / "green" / "away.png").symlink_to("/nowhere/x.png")
    (folder / "green" / "more").symlink_to(folder / "red")
    (folder / "green" / "here").symlink_to(".")
    data = open_dataset(str(folder))
    assert len(data.targets) == 20
    assert data.left_out == (
        f"{folder}: left out: .heic (2), .txt (1), broken links (1), "
        "files without a suffix (1), linked folders (2)"
    )
    (folder / "blue").mkdir()
    (folder / "blue" / "a.heic").write_bytes(b"x")
    with pytest.raises(UserError, match=r"blue: no images in this class folder \(there are \.heic"):
        open_dataset(str(folder))


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        ("jfif", "JPEG"), ("jpe", "JPEG"), ("JPG", "JPEG"), ("jp2", "JPEG2000"), ("apng", "PNG"),
        ("dib", "BMP"), ("pbm", "PPM"), ("tga", "TGA"),
    ],
)  # fmt: skip
def test_what_pillow_reads_is_an_image(tmp_path: Path, suffix: str, kind: str) -> None:
    picture = Image.fromarray(np.full((8, 8, 3), 200, np.uint8))
    (picture.convert("1") if suffix == "pbm" else picture).save(tmp_path / f"a.{suffix}", kind)
    found = find_images(tmp_path)
    assert (found.images, found.left_out) == ((tmp_path / f"a.{suffix}",), {})


@pytest.mark.parametrize(
    "name",
    [
        "\u0645\u06cc\u200c\u0631\u0648\u0645",  # Persian, with a zero-width non-joiner
        "\u0d15\u0d23\u0d4d\u200d",  # Malayalam, with a joiner
        "\U0001f468\u200d\U0001f469",  # a family
        "day\u00a0light", "caf\u00e9",
    ],
)  # fmt: skip
def test_a_name_in_any_script_is_a_class(image_folder: Make, name: str) -> None:
    data = open_dataset(str(image_folder(**{name: 4, "red": 4})))
    assert set(data.classes) == {name, "red"}


@pytest.mark.parametrize("name", ["a\u202eb", "a\nb", "a\x1b[31m", "\u2066x", "a\u2028b"])
def test_a_name_with_marks_of_direction_or_control_is_refused(
    image_folder: Make, name: str
) -> None:
    with pytest.raises(UserError, match="is not printable; rename it"):
        open_dataset(str(image_folder(**{name: 4, "red": 4})))


def test_a_name_in_decomposed_characters_is_the_same_class(image_folder: Make) -> None:
    composed = "caf\u00e9"
    decomposed = unicodedata.normalize("NFD", composed)
    image_folder("set/train", **{decomposed: 10, "red": 10})
    folder = image_folder("set/val", **{composed: 4, "red": 4}).parent
    data = open_dataset(str(folder))
    assert data.classes == (decomposed, "red")  # as it is written where it is trained on
    assert np.bincount(data.targets[data.splits["test"]]).tolist() == [4, 4]
    image_folder("set/val", **{decomposed: 2})
    with pytest.raises(UserError, match="two folders are called caf"):
        open_dataset(str(folder))


def test_a_linked_class_folder_is_a_class(image_folder: Make, tmp_path: Path) -> None:
    folder = image_folder(red=4, green=4)
    (folder / "green").rename(tmp_path / "stash")
    (folder / "green").symlink_to(tmp_path / "stash")
    assert open_dataset(str(folder)).targets.tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_images_to_divide_are_enough_to_measure_on(image_folder: Make, count: int) -> None:
    data = open_dataset(str(image_folder(red=count, green=count)))
    assert data.splits["test"].tolist() == list(range(2 * count))
    assert "a split needs at least 3" in data.undivided
