"""Masks from the user's own code: arrays, images, files, and what is said where they do not fit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vcompress.bench.data.dataset import Dataset
from vcompress.bench.data.own_targets import as_mask
from vcompress.bench.errors import UserError
from vcompress.bench.tasks import load, open_dataset

CODE = """
from pathlib import Path

import numpy as np
from PIL import Image

COUNT = 0


def mask(n):
    global COUNT
    COUNT += 1
    found = np.random.default_rng(n).integers(0, 3, (10, 14))
    found[0, 0] = 255
    return found


def photo(n):
    return np.random.default_rng(n + 99).integers(0, 256, (10, 14, 3)).astype(np.uint8)


class Photos:
    def __init__(self, start, count):
        self.start, self.count = start, count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        n = self.start + i
        form = FORMS[n % len(FORMS)]
        return photo(n), form(n)


def in_file(n):
    path = Path(f"{n}.png")
    Image.fromarray(mask(n).astype(np.uint8)).save(path)
    return path


FORMS = [mask, lambda n: Image.fromarray(mask(n).astype(np.uint8)), in_file]


def splits():
    return {"train": Photos(0, 40), "test": Photos(40, 12), MORE}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("own_masks", None)
    yield tmp_path
    sys.modules.pop("own_masks", None)


def opened(folder: Path, code: str) -> Dataset:
    (folder / "own_masks.py").write_text(code)
    return open_dataset("own_masks:splits", task="segmentation")


def test_masks_are_asked_for_when_they_are_needed(folder: Path) -> None:
    found = opened(folder, CODE.replace("MORE", '"classes": ["road", "sky", "car"]'))
    assert found.classes == ("road", "sky", "car")
    assert {k: len(v) for k, v in found.splits.items()} == {"train": 36, "val": 4, "test": 12}
    made = sys.modules["own_masks"].COUNT
    assert made < 80  # twice those of the sample, no more
    assert found.mask is not None
    for n in (3, 4, 5, 50):  # an array, an image, a file
        want = np.random.default_rng(n).integers(0, 3, (10, 14))
        want[0, 0] = 255
        assert (np.asarray(found.mask(n)) == want).all()
        assert found.mask(n).mode == "L"
    assert found.default_preprocess.size == (32, 32)
    assert made < sys.modules["own_masks"].COUNT


def test_without_names_the_masks_show_the_classes(folder: Path) -> None:
    code = CODE.replace(", MORE", "")
    found = opened(folder, code)
    assert found.classes == ("0", "1", "2")
    sys.modules.pop("own_masks")
    other = opened(folder, code.replace("found[0, 0] = 255", "found[0, 1] = 255"))
    assert other.fingerprint != found.fingerprint


def test_a_mask_that_does_not_fit_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"image 0 of train: its mask holds 2; expected classes"):
        opened(folder, CODE.replace("MORE", '"classes": ["road", "sky"]'))
    sys.modules.pop("own_masks")
    found = opened(folder, CODE.replace(", MORE", "").replace("(10, 14, 3)", "(9, 14, 3)"))
    assert found.mask is not None
    with pytest.raises(UserError, match="its mask has 14x10 pixels, and the image 14x9"):
        found.mask(0)


def test_what_a_mask_may_be() -> None:
    values = np.array([[0, 1], [255, 2]], np.uint8)
    grey = Image.fromarray(values)
    palette = grey.copy()
    palette.putpalette([9, 9, 9] * 256)
    for form in (
        values, values.astype(np.int64), values[None], values[..., None], values.tolist(), grey,
        palette, torch.from_numpy(values)[None], values.astype(np.int32),
    ):  # fmt: skip
        assert (as_mask(form, ("a", "b", "c"), "here") == values).all()
    for form, said in (
        (values.astype(np.float32), r"here is \[2, 2\] float32; expected whole numbers"),
        (np.zeros((2, 2, 3), np.uint8), r"\[2, 2, 3\] uint8"),
        (np.array([[-1, 0]]), "here holds -1; expected classes from 0 to 2, and 255"),
        (np.array([[3, 0]]), "here holds 3"),
        ("x", "no such image"),
        (None, "object"),
    ):
        with pytest.raises(UserError, match=said):
            as_mask(form, ("a", "b", "c"), "here")


def test_masks_that_are_held_in_code_are_checked_as_a_whole() -> None:
    read = load("segmentation").read_targets
    names, rows = read({"test": [[[0, 1]], [[4, 255]]]}, None, "data")
    assert names == ("0", "1", "2", "3", "4")
    assert rows.shape == (2, 0)
    with pytest.raises(UserError, match="target 1 of test holds 4"):
        read({"test": [[[0, 1]], [[4, 255]]]}, ("a", "b"), "data")
