"""Images and masks as strangers lay them out, and the ways in which they may not fit together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vcompress.bench.data.dataset import Dataset
from vcompress.bench.data.masks import open_masks
from vcompress.bench.data.preprocess import whole_preprocess
from vcompress.bench.errors import UserError

COLOURS = ((0, 0, 0), (128, 0, 0), (0, 128, 0), (255, 255, 255))
TABLE = "name,r,g,b\nground,0,0,0\ncat,128,0,0\ndog,0,128,0\nVoid,255,255,255\n"


def classes(seed: int, size: tuple[int, int] = (12, 16)) -> NDArray[np.uint8]:
    """A map of the classes 0 to 2, all of them there."""
    found = np.random.default_rng(seed).integers(0, 3, size).astype(np.uint8)
    found[0, :3] = 0, 1, 2
    return found


def photo(path: Path, seed: int, size: tuple[int, int] = (12, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed + 1000).integers(0, 256, (*size, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def mask(path: Path, seed: int, form: str = "L", **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = classes(seed, **more)
    if form == "RGB":
        Image.fromarray(np.array(COLOURS, np.uint8)[values]).save(path)
        return
    image = Image.fromarray(values)
    if form == "P":
        image.putpalette(np.array(COLOURS, np.uint8).tobytes())
    image.save(path)


def layout(root: Path, pairs: Mapping[str, str], form: str = "L") -> None:
    """Files by the names of images and masks, the seed of each its place."""
    for seed, (image, its_mask) in enumerate(sorted(pairs.items())):
        photo(root / image, seed)
        mask(root / its_mask, seed, form)


def check(found: Dataset, pairs: Mapping[str, str], root: Path) -> None:
    """Each image has the mask that was made for it."""
    assert found.mask is not None
    assert len(found.targets) == len(pairs)
    seeds = {}
    for seed, name in enumerate(sorted(pairs)):
        with Image.open(root / name) as image:
            seeds[np.asarray(image.convert("RGB")).tobytes()] = seed
    for i in range(len(pairs)):
        seed = seeds[np.asarray(found.image(i).convert("RGB")).tobytes()]
        assert (np.asarray(found.mask(i)) == classes(seed)).all(), pairs


def names(n: int, *parts: str) -> list[str]:
    return [f"{part}{i:02}" for part in parts for i in range(n)]


LAYOUTS: dict[str, tuple[dict[str, str], dict[str, int]]] = {
    "below": (
        {
            f"images/{s}/{i}.png": f"masks/{s}/{i}.png"
            for s in ("train", "val", "test") for i in "abc"
        },
        {"train": 3, "val": 3, "test": 3},
    ),
    "above": (
        {
            f"{s}/images/{s}{i}.jpg.png": f"{s}/masks/{s}{i}.jpg.png"
            for s in ("train", "valid", "test") for i in "abc"
        },
        {"train": 3, "val": 3, "test": 3},
    ),
    "camvid": (
        {f"{s}/{s}{i}.png": f"{s}annot/{s}{i}.png" for s in ("train", "val", "test") for i in "ab"},
        {"train": 2, "val": 2, "test": 2},
    ),
    "camvid of kaggle": (
        {
            f"{s}/00{s}{i}.png": f"{s}_labels/00{s}{i}_L.png"
            for s in ("train", "val", "test") for i in "ab"
        },
        {"train": 2, "val": 2, "test": 2},
    ),
    "ade20k": (
        {
            f"images/{s}/ADE_{s}_{i}.png": f"annotations/{s}/ADE_{s}_{i}.png"
            for s in ("training", "validation") for i in range(20)
        },
        {"train": 18, "val": 2, "test": 20},
    ),
    "pets": (
        {f"images/cat_{i}.png": f"annotations/trimaps/cat_{i}.png" for i in range(30)},
        {"train": 21, "val": 3, "test": 6},
    ),
    "in one folder": (
        {f"train/{i}_sat.png": f"train/{i}_mask.png" for i in range(10)}
        | {f"valid/{i}_sat.png": f"valid/{i}_mask.png" for i in range(10, 12)},
        {"train": 9, "val": 1, "test": 2},
    ),
    "cities": (
        {
            f"leftImg8bit/{s}/{city}/{city}_0_{i}_leftImg8bit.png":
                f"labels/{s}/{city}/{city}_0_{i}_label.png"
            for s in ("train", "val") for city in (f"a{s}", f"b{s}") for i in range(6)
        },
        {"train": 11, "val": 1, "test": 12},
    ),
    "undivided": (
        {f"images/{i}.png": f"masks/{i}.png" for i in range(20)},
        {"train": 14, "val": 2, "test": 4},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(LAYOUTS))
@pytest.mark.parametrize("form", ["L", "P"])
def test_usual_layouts_are_understood(tmp_path: Path, name: str, form: str) -> None:
    pairs, counts = LAYOUTS[name]
    layout(tmp_path, pairs, form)
    found = open_masks(str(tmp_path), 0)
    assert {k: len(v) for k, v in found.splits.items()} == counts
    assert sorted(np.concatenate(list(found.splits.values()))) == list(range(len(pairs)))
    assert found.classes == ("0", "1", "2")
    assert found.drawn == (name in ("undivided", "pets"))
    assert found.left_out == ""
    check(found, pairs, tmp_path)


def test_voc_is_read_by_its_lists(tmp_path: Path) -> None:
    pairs = {f"JPEGImages/2007_{i}.png": f"SegmentationClass/2007_{i}.png" for i in range(8)}
    layout(tmp_path, pairs, "P")
    for i in range(8, 11):  # images for detection alone
        photo(tmp_path / f"JPEGImages/2007_{i}.png", i)
    mask(tmp_path / "SegmentationObject/2007_0.png", 0)
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(f"2007_{i}" for i in range(5)))
    (lists / "val.txt").write_text("\n".join(f"2007_{i}" for i in range(5, 8)) + "\n")
    (lists / "trainval.txt").write_text("\n".join(f"2007_{i}" for i in range(8)))
    found = open_masks(str(tmp_path), 0)
    assert (found.classes[0], found.classes[15], len(found.classes)) == ("background", "person", 21)
    assert {k: len(v) for k, v in found.splits.items()} == {"train": 4, "val": 1, "test": 3}
    assert "images in no list (3)" in found.left_out
    assert "pictures in other folders (1)" in found.left_out
    check(found, pairs, tmp_path)
    (lists / "val.txt").write_text("2007_5\n2007_9\n")
    with pytest.raises(UserError, match=r"val.txt, line 2: .*2007_9.png has no mask"):
        open_masks(str(tmp_path), 0)
    (lists / "val.txt").write_text("2007_5\n2007_77\n")
    with pytest.raises(UserError, match=r"val.txt, line 2: '2007_77' is no image here"):
        open_masks(str(tmp_path), 0)
    (lists / "val.txt").write_text("2007_5\n2007_1\n")
    with pytest.raises(UserError, match=r"2007_1.png is in the lists of train and val"):
        open_masks(str(tmp_path), 0)


def test_a_list_may_have_more_behind_a_name(tmp_path: Path) -> None:
    pairs = {f"images/Cat_{i}.png": f"annotations/trimaps/Cat_{i}.png" for i in range(12)}
    layout(tmp_path, pairs)
    (tmp_path / "annotations/trimaps/._Cat_1.png").write_bytes(b"left by a system")
    (tmp_path / "annotations/list.txt").write_text("# all of them\n")
    for name, part in (("trainval", range(8)), ("test", range(8, 12))):
        lines = [f"Cat_{i} {i + 1} 1 2" for i in part]
        (tmp_path / f"annotations/{name}.txt").write_text("\n".join(lines))
    found = open_masks(str(tmp_path), 0)
    assert {k: len(v) for k, v in found.splits.items()} == {"train": 7, "val": 1, "test": 4}
    check(found, pairs, tmp_path)


def test_a_list_may_name_the_mask_behind_the_image(tmp_path: Path) -> None:
    pairs = {f"images/p{i}.png": f"labels/m{9 - i}.png" for i in range(10)}
    layout(tmp_path, pairs)
    for split, part in (("train", range(6)), ("val", range(6, 8)), ("test", range(8, 10))):
        lines = [
            f"/elsewhere/city/images/p{i}.png /elsewhere/city/labels/m{9 - i}.png" for i in part
        ]
        (tmp_path / f"{split}.txt").write_text("\n".join(lines))
    found = open_masks(str(tmp_path), 0)
    assert {k: len(v) for k, v in found.splits.items()} == {"train": 6, "val": 2, "test": 2}
    check(found, pairs, tmp_path)


def test_what_no_list_names_is_trained_on_where_there_is_a_list_for_measuring_alone(
    tmp_path: Path,
) -> None:
    layout(tmp_path, {f"images/p{i}.png": f"labels/p{i}_P.png" for i in range(12)})
    (tmp_path / "valid.txt").write_text("p1.png\np2.png\n")
    (tmp_path / "codes.txt").write_text("Sky\nRoad\nCar\n")
    found = open_masks(str(tmp_path), 0)
    assert {k: len(v) for k, v in found.splits.items()} == {"train": 9, "val": 1, "test": 2}
    assert found.classes == ("Sky", "Road", "Car")


def test_cityscapes_numbers_become_its_nineteen_classes(tmp_path: Path) -> None:
    for s, n in (("train", 5), ("val", 2)):
        for i in range(n):
            stem = f"{s}_0_{i}"
            photo(tmp_path / f"leftImg8bit/{s}/town/{stem}_leftImg8bit.png", i + 10 * n)
            place = tmp_path / f"gtFine/{s}/town"
            mask(place / f"{stem}_gtFine_color.png", i, "RGB")
            mask(place / f"{stem}_gtFine_instanceIds.png", i)
            (place / f"{stem}_gtFine_polygons.json").write_text("{}")
            values = np.full((12, 16), 7, np.uint8)
            values[0, :6] = 0, 33, 26, 1, 8, 29
            Image.fromarray(values).save(place / f"{stem}_gtFine_labelIds.png")
    photo(tmp_path / "leftImg8bit/test/town/test_0_0_leftImg8bit.png", 99)
    found = open_masks(str(tmp_path), 0)
    assert (len(found.classes), found.classes[0], found.classes[18]) == (19, "road", "bicycle")
    assert found.mask is not None
    assert np.asarray(found.mask(0))[0, :7].tolist() == [255, 18, 13, 255, 1, 255, 0]
    assert "images of test, which has no masks (1)" in found.left_out
    for file in (tmp_path / "gtFine").rglob("*_labelIds.png"):
        train_ids = np.full((12, 16), 255, np.uint8)
        train_ids[:5] = 18
        Image.fromarray(train_ids).save(
            file.with_name(file.name.replace("labelIds", "labelTrainIds"))
        )
    again = open_masks(str(tmp_path), 0)
    assert again.mask is not None
    assert np.unique(np.asarray(again.mask(0))).tolist() == [18, 255]


def test_colours_are_classes_by_their_table(tmp_path: Path) -> None:
    pairs = {f"images/{i}.png": f"masks/{i}.png" for i in range(20)}
    layout(tmp_path, pairs, "RGB")
    with pytest.raises(
        UserError, match=r"coloured \(colours #000000, #008000, #800000\).*classes.csv"
    ):
        open_masks(str(tmp_path), 0)
    for text in (
        TABLE,
        "name,colour\nground,#000000\ncat,#800000\ndog,#008000\nignore,#FFFFFF\n",
        'colour,name\n"0,0,0",ground\n"128, 0, 0",cat\n"0,128,0",dog\n"(255,255,255)",void\n',
    ):
        (tmp_path / "classes.csv").write_text(text)
        found = open_masks(str(tmp_path), 0)
        assert found.classes == ("ground", "cat", "dog")
        check(found, pairs, tmp_path)
    layout(tmp_path, pairs, "P")  # with a palette of these colours
    check(open_masks(str(tmp_path), 0), pairs, tmp_path)
    (tmp_path / "classes.csv").unlink()
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nground:0,0,0::\ncat:128,0,0::\ndog:0,128,0::\n"
    )
    assert open_masks(str(tmp_path), 0).classes == ("ground", "cat", "dog")
    (tmp_path / "labelmap.txt").unlink()
    (tmp_path / "label_colors.txt").write_text("0 0 0\tground\n128 0 0\tcat\n0 128 0\tdog\n")
    layout(tmp_path, pairs, "RGB")
    check(open_masks(str(tmp_path), 0), pairs, tmp_path)


def test_an_ignored_colour_does_not_count(tmp_path: Path) -> None:
    layout(tmp_path, {f"images/{i}.png": f"masks/{i}.png" for i in range(10)}, "RGB")
    pixels = np.array(COLOURS, np.uint8)[classes(0)]
    pixels[5:] = 255
    Image.fromarray(pixels).save(tmp_path / "masks/0.png")
    (tmp_path / "classes.csv").write_text(TABLE)
    found = open_masks(str(tmp_path), 0)
    assert found.mask is not None
    read = np.asarray(found.mask(0))
    assert (read[5:] == 255).all()
    assert (read[:5] == classes(0)[:5]).all()


def test_numbers_are_classes_by_their_table(tmp_path: Path) -> None:
    layout(tmp_path, {f"images/{i}.png": f"masks/{i}.png" for i in range(10)})
    (tmp_path / "classes.csv").write_text("name,number\nvoid,0\ndog,2\ncat,1\n")
    found = open_masks(str(tmp_path), 0)
    assert found.classes == ("dog", "cat")
    assert found.mask is not None
    assert (np.asarray(found.mask(3)) == np.array([255, 1, 0])[classes(3)]).all()
    (tmp_path / "classes.csv").write_text("name\nground\ncat\ndog\n")
    assert open_masks(str(tmp_path), 0).classes == ("ground", "cat", "dog")
    assert open_masks(str(tmp_path), 0).fingerprint != found.fingerprint


def test_nought_and_255_are_two_classes(tmp_path: Path) -> None:
    for i in range(10):
        photo(tmp_path / f"images/{i}.png", i)
        (tmp_path / "masks").mkdir(exist_ok=True)
        image = Image.fromarray((classes(i) > 0).astype(np.uint8) * 255)
        image.convert("RGB" if i % 2 else "L").save(tmp_path / f"masks/{i}.png")
    found = open_masks(str(tmp_path), 0)
    assert found.classes == ("background", "foreground")
    assert found.mask is not None
    for i in (0, 1):
        assert (np.asarray(found.mask(i)) == (classes(i) > 0)).all()
    for i in range(10):
        Image.fromarray(classes(i) > 0).save(tmp_path / f"masks/{i}.png")  # one bit a pixel
    assert open_masks(str(tmp_path), 0).classes == ("0", "1")


def test_255_is_ignored_where_there_are_classes(tmp_path: Path) -> None:
    layout(tmp_path, {f"images/{i}.png": f"masks/{i}.png" for i in range(10)})
    values = classes(4)
    values[:, 8:] = 255
    Image.fromarray(values).save(tmp_path / "masks/4.png")
    found = open_masks(str(tmp_path), 0)
    assert found.classes == ("0", "1", "2")
    assert found.mask is not None
    assert (np.asarray(found.mask(4)) == values).all()


def plain(root: Path, n: int = 10) -> None:
    layout(root, {f"images/{i}.png": f"masks/{i}.png" for i in range(n)})


def refused(root: Path, text: str) -> None:
    with pytest.raises(UserError, match=text):
        open_masks(str(root), 0)


def test_what_does_not_belong_together_is_named(tmp_path: Path) -> None:
    plain(tmp_path)
    photo(tmp_path / "images/more.png", 77)
    refused(tmp_path, r"images/more.png: this image has no mask \(1 of 11\). .*Add what is missing")
    (tmp_path / "images/more.png").unlink()
    mask(tmp_path / "masks/more.png", 7)
    refused(tmp_path, r"masks/more.png: this mask has no image \(1 of 11\)")
    (tmp_path / "masks/more.png").unlink()
    mask(tmp_path / "masks/3.png", 3, size=(12, 17))
    refused(tmp_path, r"masks/3.png: 17x12 pixels, and its image .*3.png 16x12 \(1 of 10 pairs")
    mask(tmp_path / "masks/3.png", 3)
    mask(tmp_path / "labels/3.png", 3)
    refused(tmp_path, "two masks belong to it, .*labels/3.png and .*masks/3.png")
    (tmp_path / "labels/3.png").unlink()
    (tmp_path / "masks/3.png").write_bytes(b"nothing")
    refused(tmp_path, "masks/3.png: cannot be read as an image")
    refused(tmp_path / "nowhere", "no such folder. Expected scenes, or a folder with images/")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"empty: no masks. Expected folders images/ and masks/")
    refused(tmp_path / "images", "no masks")


def test_an_unknown_value_is_named_with_its_mask(tmp_path: Path) -> None:
    plain(tmp_path, 40)
    (tmp_path / "classes.csv").write_text("name\nground\ncat\ndog\n")
    found = open_masks(str(tmp_path), 0)
    values = classes(1)
    values[7, 3:6] = 9
    for i in (0, 39):  # the first and the last are always looked at
        Image.fromarray(values).save(tmp_path / f"masks/{i}.png")
    assert found.mask is not None
    with pytest.raises(
        UserError, match=r"masks/0.png: value 9 is no class \(3 pixels; classes.csv "
    ):
        found.mask(0)
    refused(tmp_path, "Add it to classes.csv, with the name ignore where")
    layout(tmp_path, {f"images/{i}.png": f"masks/{i}.png" for i in range(40)}, "RGB")
    (tmp_path / "classes.csv").write_text(TABLE)
    pixels = np.array(COLOURS, np.uint8)[classes(0)]
    pixels[7, :2] = (1, 2, 3), (1, 2, 4)
    Image.fromarray(pixels).save(tmp_path / "masks/0.png")
    refused(tmp_path, r"masks/0.png: colours #010203, #010204 are no class \(2 pixels")
    # With the classes in the folder of the masks as JPEG, their values are not what they were.
    (tmp_path / "classes.csv").write_text("name\nground\ncat\ndog\n")
    for i in range(40):
        (tmp_path / f"masks/{i}.png").unlink()
        Image.fromarray(classes(i) * 100).save(tmp_path / f"masks/{i}.jpg")
    refused(tmp_path, "JPEG changes the values of a mask: save masks as PNG")


def test_values_that_are_no_numbers_of_classes_ask_for_a_table(tmp_path: Path) -> None:
    plain(tmp_path)
    for i in range(10):
        Image.fromarray(classes(i) * 50).save(tmp_path / f"masks/{i}.png")
    refused(tmp_path, r"the values 0, 50, 100, which look like no numbers of classes.*classes.csv")
    for i in range(10):
        Image.fromarray(classes(i) * 0).save(tmp_path / f"masks/{i}.png")
    refused(tmp_path, "one class alone")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nam,r,g,b\na,0,0,0\n", "expected names of columns: name"),
        ("name,shape\na,1\n", "unknown column 'shape'"),
        ("name,r,g,b\na,0,0,0\na,1,1,1\n", "row 2: the name 'a' is empty, odd, or stands twice"),
        ("name,r,g,b\na,0,0,0\nb,0,0,0\n", "#000000 stands for two classes"),
        ("name,r,g,b\na,0,0,256\nb,0,0,0\n", "the colour is '0 0 256'; expected r,g,b"),
        ("name,colour\na,0,0,0\nb,1,1,1\n", "4 values for 2 columns. Put r,g,b into quotes"),
        ("name,colour\na,red\nb,blue\n", "row 1: the colour is 'red'"),
        ("name,number\na,-1\nb,0\n", "the number is '-1'; expected 0 to 65535"),
        ("name,number\na,1\nb,1\n", "1 stands for two classes"),
        ("name\na\nvoid\n", "1 classes; expected 2 to 254"),
        ("name,id,value\na,0,0\nb,1,1\n", "two columns mean number"),
        ("", "expected names of columns"),
    ],
)
def test_a_table_that_is_not_understood_says_where(tmp_path: Path, text: str, said: str) -> None:
    plain(tmp_path)
    (tmp_path / "classes.csv").write_text(text)
    refused(tmp_path, said)


def test_copies_in_two_splits_are_refused(tmp_path: Path) -> None:
    pairs, _ = LAYOUTS["below"]
    layout(tmp_path, pairs)
    (tmp_path / "images/test/a.png").write_bytes((tmp_path / "images/train/a.png").read_bytes())
    refused(tmp_path, "test/ and train/ overlap")


def test_the_fingerprint_is_over_names_sizes_and_classes(tmp_path: Path) -> None:
    plain(tmp_path)
    first = open_masks(str(tmp_path), 0)
    assert open_masks(str(tmp_path), 0).fingerprint == first.fingerprint
    assert open_masks(str(tmp_path), 1).fingerprint != first.fingerprint
    mask(tmp_path / "masks/3.png", 33)
    assert open_masks(str(tmp_path), 0).fingerprint != first.fingerprint


def test_the_usual_size_keeps_the_shape_in_multiples_of_32() -> None:
    sizes = [(2048, 1024), (960, 720), (500, 375), (100, 100), (4000, 500), (20, 30)]
    assert [whole_preprocess(s).size for s in sizes] == [
        (256, 512), (256, 352), (256, 352), (96, 96), (256, 512), (32, 32),
    ]  # fmt: skip


def test_an_upright_photograph_has_the_size_that_exif_says(tmp_path: Path) -> None:
    plain(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((16, 12, 3), np.uint8)).save(tmp_path / "images/0.png", exif=exif)
    found = open_masks(str(tmp_path), 0)
    assert found.image(0).size == (16, 12)
