"""COCO's JSON as classes of pixels: objects and whole scenes, in the folders that tools write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from PIL import Image

from vcompress.bench.data.masks import open_masks
from vcompress.bench.errors import UserError

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
SIZE = 20, 30


def photo(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def box(x: int, y: int, width: int, height: int) -> list[list[int]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def content(names: list[str], change: Callable[[dict[str, Any]], None] = lambda _: None) -> str:
    """A cat with a dog upon it in each image, and a crowd of dogs."""
    crowd = {"counts": [20 * 25, 100], "size": list(SIZE)}
    data: dict[str, Any] = {
        "images": [
            {"id": i, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
            for i, name in enumerate(names)
        ],
        "annotations": [
            one
            for i in range(len(names))
            for one in (
                {"id": 9 * i, "image_id": i, "category_id": 7, "segmentation": box(4, 4, 4, 4)},
                {"id": 9 * i + 1, "image_id": i, "category_id": 3,
                 "segmentation": box(2, 2, 12, 12), "iscrowd": 0},
                {"id": 9 * i + 2, "image_id": i, "category_id": 7, "segmentation": crowd,
                 "iscrowd": 1},
            )
        ],
        "categories": [dict(category) for category in CATEGORIES],
    }  # fmt: skip
    change(data)
    return json.dumps(data)


def expected() -> np.ndarray:
    found = np.zeros(SIZE, np.uint8)
    found[2:14, 2:14] = 1
    found[4:8, 4:8] = 2
    found[:, 25:] = 255
    return found


def coco(root: Path, **counts: int) -> None:
    """As cocodataset.org has it."""
    for part, count in counts.items():
        names = [f"{part}_{i:012}.png" for i in range(count)]
        for name in names:
            photo(root / "images" / part / name, crc32(name.encode()))
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/instances_{part}.json").write_text(content(names))
        (root / f"annotations/captions_{part}.json").write_text("{}")


def test_objects_become_classes_with_the_smaller_one_above(tmp_path: Path) -> None:
    coco(tmp_path, train2017=9, val2017=4)
    found = open_masks(str(tmp_path), 0)
    assert found.classes == ("background", "cat", "dog")
    assert {k: len(v) for k, v in found.splits.items()} == {"train": 8, "val": 1, "test": 4}
    assert found.mask is not None
    for i in (0, 12):
        assert (np.asarray(found.mask(i)) == expected()).all()
    assert found.image(0).size == (30, 20)
    again = open_masks(str(tmp_path), 0)
    assert again.fingerprint == found.fingerprint
    one = open_masks(str(tmp_path / "annotations/instances_val2017.json"), 0)
    assert len(one.targets) == 4
    assert one.classes == found.classes


def test_a_folder_for_each_split_with_its_json_in_it(tmp_path: Path) -> None:
    def above(data: dict[str, Any]) -> None:
        data["categories"] = [
            {"id": 0, "name": "pets", "supercategory": "none"},
            *({**c, "supercategory": "pets"} for c in CATEGORIES),
        ]

    for split, count in (("train", 6), ("valid", 2), ("test", 3)):
        names = [f"{split}{i}.png" for i in range(count)]
        for name in names:
            photo(tmp_path / split / name, crc32(name.encode()))
        (tmp_path / split / "_annotations.coco.json").write_text(content(names, above))
    found = open_masks(str(tmp_path), 0)
    assert found.classes == ("background", "cat", "dog")
    assert {k: len(v) for k, v in found.splits.items()} == {"train": 6, "val": 2, "test": 3}
    assert found.mask is not None
    assert (np.asarray(found.mask(10)) == expected()).all()


def test_whole_scenes_have_a_class_in_each_segment(tmp_path: Path) -> None:
    coco(tmp_path, train2017=5, val2017=2)

    def panoptic(data: dict[str, Any]) -> None:
        red, mixed = 255, 3 + 2 * 256 + 65536
        data["annotations"] = [
            {"image_id": one["id"], "file_name": one["file_name"], "segments_info": [
                {"id": mixed, "category_id": 7}, {"id": red, "category_id": 3}]}
            for one in data["images"]
        ]  # fmt: skip

    for part, count in (("train2017", 5), ("val2017", 2)):
        names = [f"{part}_{i:012}.png" for i in range(count)]
        folder = tmp_path / f"annotations/panoptic_{part}"
        folder.mkdir()
        pixels = np.zeros((*SIZE, 3), np.uint8)
        pixels[2:8] = 3, 2, 1
        pixels[8:12] = 255, 0, 0
        for name in names:
            Image.fromarray(pixels).save(folder / name)
        folder.with_suffix(".json").write_text(content(names, panoptic))
    found = open_masks(str(tmp_path), 0)
    assert found.classes == ("cat", "dog")  # the panoptic files, and no background
    assert found.mask is not None
    rows = np.asarray(found.mask(0))[:, 0].tolist()
    assert rows == [255] * 2 + [1] * 6 + [0] * 4 + [255] * 8
    pixels[19] = 9, 9, 9
    Image.fromarray(pixels).save(folder / names[0])
    with pytest.raises(UserError, match="segment 592137 is not in its segments_info"):
        found.mask(5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("categories"), "no list 'categories'"),
        (lambda d: d["annotations"][0].pop("segmentation"), "annotation 0 has no segmentation"),
        (lambda d: d["annotations"][0].update(category_id=99), "category 99 of an annotation is"),
        (lambda d: d["images"][1].update(width=31), "30x20 pixels, and the JSON says 31x20"),
        (lambda d: d["images"][1].update(file_name="gone.png"), "'gone.png' is not in "),
        (lambda d: d["images"][1].update(file_name="../x.png"), "leads out of the folder"),
        (lambda d: d["images"][1].pop("height"), "expected file_name, height and width"),
        (lambda d: d["categories"][0].update(name="a\x07"), "printable name"),
        (lambda d: d["categories"].append({"id": 8, "name": "cat"}), "two categories are called"),
        (lambda d: d.update(images=[]), "no image in it"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    names = [f"{i}.png" for i in range(4)]
    for i, name in enumerate(names):
        photo(tmp_path / name, i)
    (tmp_path / "data.json").write_text(content(names, change))
    with pytest.raises(UserError, match=said):
        open_masks(str(tmp_path / "data.json"), 0)


def test_other_categories_in_one_file_are_refused(tmp_path: Path) -> None:
    coco(tmp_path, train2017=3, val2017=2)
    file = tmp_path / "annotations/instances_val2017.json"
    file.write_text(file.read_text().replace("dog", "cow"))
    with pytest.raises(UserError, match="have different categories"):
        open_masks(str(tmp_path), 0)
    file.write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        open_masks(str(tmp_path), 0)
