"""Images with a table: what is read, how they are divided, and what a mistake is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vcompress.bench.errors import UserError
from vcompress.bench.tasks import open_dataset


def folder(tmp_path: Path, count: int = 20) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for n in range(count):
        pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"pictures/{n}.png")
    return tmp_path


def write(path: Path, header: str, rows: list[str]) -> None:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def labelled(tmp_path: Path) -> Path:
    top = folder(tmp_path)
    kinds = ["cat", "dog|cat", "", "bird"]
    rows = [f"pictures/{n}.png,{kinds[n % 4]}" for n in range(20)]
    write(top / "labels.csv", "image,labels", rows)
    return top


def test_labels_are_read_by_name_and_an_image_may_have_none(tmp_path: Path) -> None:
    found = open_dataset(str(labelled(tmp_path)), task="multilabel")
    assert (found.classes, found.task) == (("bird", "cat", "dog"), "multilabel")
    assert found.targets[:4].tolist() == [[0, 1, 0], [0, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert {name: len(part) for name, part in found.splits.items()} == {
        "train": 14, "val": 2, "test": 4,
    }  # fmt: skip
    assert found.image(3).size == (8, 8)
    again = open_dataset(str(tmp_path), task="multilabel")
    assert again.fingerprint == found.fingerprint
    assert open_dataset(str(tmp_path), seed=1, task="multilabel").fingerprint != found.fingerprint


def test_json_lines_and_columns_of_noughts_and_ones_say_the_same(tmp_path: Path) -> None:
    top = labelled(tmp_path)
    first = open_dataset(str(top), task="multilabel")
    (top / "labels.csv").unlink()
    kinds: list[list[str]] = [["cat"], ["dog", "cat"], [], ["bird"]]
    rows = [{"image": f"pictures/{n}.png", "labels": kinds[n % 4]} for n in range(20)]
    (top / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    second = open_dataset(str(top), task="multilabel")
    (top / "labels.jsonl").unlink()
    names = ("bird", "cat", "dog")
    rows_01 = [
        f"pictures/{n}.png," + ",".join(str(int(name in kinds[n % 4])) for name in names)
        for n in range(20)
    ]
    write(top / "labels.csv", "image,bird,cat,dog", rows_01)
    third = open_dataset(str(top), task="multilabel")
    assert first.fingerprint == second.fingerprint == third.fingerprint


def test_numbers_are_read_and_a_column_divides_the_images(tmp_path: Path) -> None:
    top = folder(tmp_path)
    parts = ["train"] * 14 + ["val"] * 2 + ["test"] * 4
    rows = [f"pictures/{n}.png,{n / 2},{-n},{parts[n]}" for n in range(20)]
    write(top / "targets.csv", "image,width,depth,split", rows)
    found = open_dataset(str(top), task="regression")
    assert found.classes == ("width", "depth")
    assert found.targets.dtype == np.float32
    assert found.targets[3].tolist() == [1.5, -3.0]
    assert found.splits["test"].tolist() == [16, 17, 18, 19]


def test_a_number_beyond_float32_is_refused(tmp_path: Path) -> None:
    top = folder(tmp_path)
    write(top / "targets.csv", "image,width", [f"pictures/{n}.png,1e39" for n in range(20)])
    with pytest.raises(UserError, match=r"row 1: width = '1e39'; expected a number"):
        open_dataset(str(top), task="regression")


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        (
            "image,labels",
            "pictures/99.png,cat",
            "1 of 20 images are not there, such as pictures/99",
        ),
        ("image,labels", f"{'a' * 300}.png,cat", "1 of 20 images are not there, such as aaa"),
        ("picture,labels", "pictures/0.png,cat", "no column image; it has picture, labels"),
        ("image,labels,colour", "pictures/0.png,cat,red", "unknown column 'colour'"),
        ("image,cat", "pictures/0.png,2", "row 1: cat = 2; expected 0 or 1"),
        ("image,cat", "pictures/0.png,yes", "row 1: cat = 'yes'; expected a number"),
        ("image,labels", "../out.png,cat", "does not lie in"),
        ("image,labels", "/etc/hosts,cat", "does not lie in"),
        (
            "image,labels,split",
            "pictures/0.png,cat,dev",
            "split = 'dev'; expected train, val, test",
        ),
        ("image,labels", "pictures/0.png,cat,dog", "row 1: 3 values for 2 columns"),
        ("image", "pictures/0.png", "nothing but image names"),
        ("image,labels", "pictures/1.png,cat", "more than once"),
    ],
)
def test_a_mistake_in_the_table_is_one_message(
    tmp_path: Path, header: str, row: str, message: str
) -> None:
    top = folder(tmp_path)
    more = {"image": "", "split": ",train"}.get(header.rpartition(",")[2], ",1")
    fill = {"image,labels": ",cat", "image": "", "image,labels,split": ",cat,train"}
    rest = [f"pictures/{n}.png{fill.get(header, more)}" for n in range(1, 20)]
    if header == "image,labels,colour":
        rest = [f"{line},red" for line in rest]
    write(top / "labels.csv", header, [row, *rest])
    with pytest.raises(UserError, match=message):
        open_dataset(str(top), task="multilabel")


def test_a_folder_without_a_table_and_a_task_that_nobody_knows_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no targets\.csv or targets\.jsonl"):
        open_dataset(str(tmp_path), task="regression")
    for task in ("classification", "multilabel"):  # longer than file systems take
        with pytest.raises(UserError, match=r"'aaa.*no such folder"):
            open_dataset("a" * 300, task=task)
    with pytest.raises(UserError, match=r"unknown task 'multilable'.*'multilabel'"):
        open_dataset("digits", task="multilable")
    write(tmp_path / "targets.csv", "image,x", ["a.png,nan"])
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"x = 'nan'; expected a number"):
        open_dataset(str(tmp_path), task="regression")


def test_copies_of_an_image_are_not_both_trained_on_and_measured_on(tmp_path: Path) -> None:
    top = labelled(tmp_path)
    data = (top / "pictures/0.png").read_bytes()
    for n in range(1, 8):
        (top / f"pictures/{n}.png").write_bytes(data)
    found = open_dataset(str(top), task="multilabel")
    assert set(range(8)) <= set(found.splits["train"].tolist())
