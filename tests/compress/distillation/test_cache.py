"""What the teacher says is kept whole or not at all, and never taken for another teacher's."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vcompress.bench.errors import UserError
from vcompress.compress.data.loader import Data
from vcompress.compress.distillation.cache import Output, TeacherCache, open_cache

OUTPUTS = [Output("logits-0", (3,), "float32"), Output("features-0-body", (2, 4, 4), "float16")]
IDENTITY = {"teachers": ["abc"], "takes": [{"size": [16, 16]}], "classes": ["a", "b", "c"]}


@pytest.fixture
def data(tiny_data: Callable[..., Data]) -> Data:
    data: Data = tiny_data()
    return data


def values(indices: Any, shift: float = 0.0) -> list[torch.Tensor]:
    """Something of each output that says which image it is from."""
    start = torch.as_tensor(indices, dtype=torch.float32) + shift
    return [
        start[:, None].expand(-1, 3).contiguous(),
        start[:, None, None, None].expand(-1, 2, 4, 4) / 8,
    ]


def batches(data: Data, shift: float = 0.0, most: int = 99) -> Iterator[Any]:
    train = data.dataset.splits["train"]
    for n, start in enumerate(range(0, len(train), 8)):
        if n == most:
            raise KeyboardInterrupt
        yield train[start : start + 8], values(train[start : start + 8], shift)


def filled(folder: Path, data: Data, views: int = 2) -> TeacherCache:
    cache = open_cache(folder, IDENTITY, OUTPUTS, data, views)
    for view in range(views):
        cache.write(view, batches(data, shift=100 * view))
    return cache


def test_what_was_written_is_read_by_image_and_view(tmp_path: Path, data: Data) -> None:
    filled(tmp_path / "c", data)
    again = open_cache(tmp_path / "c", IDENTITY, OUTPUTS, data, 2)
    assert again.has(0) and again.has(1) and not again.has(2)
    wanted = torch.tensor(data.dataset.splits["train"][[5, 0, 17]])
    logits, features = again.read(1, wanted)
    assert torch.equal(logits, values(wanted, 100)[0])
    assert torch.equal(features, values(wanted, 100)[1])  # eighths are exact in float16
    assert logits.dtype == features.dtype == torch.float32
    assert isinstance(again.opened[1][0], np.memmap)
    size = len(data.dataset.splits["train"]) * (3 * 4 + 2 * 4 * 4 * 2)
    assert sum(f.stat().st_size for f in (tmp_path / "c/view-0000").glob("*.npy")) == size + 256


def test_an_interrupted_view_is_not_there_and_the_others_stay(tmp_path: Path, data: Data) -> None:
    cache = filled(tmp_path / "c", data)
    with pytest.raises(KeyboardInterrupt):
        cache.write(2, batches(data, most=3))
    again = open_cache(tmp_path / "c", IDENTITY, OUTPUTS, data, 3)
    assert [again.has(view) for view in range(3)] == [True, True, False]
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == [
        "cache.json", "view-0000", "view-0001",
    ]  # fmt: skip
    again.write(2, batches(data, shift=7))
    assert again.read(2, torch.tensor([int(data.dataset.splits["train"][0])]))[0][0, 0] == (
        float(data.dataset.splits["train"][0]) + 7
    )


def test_what_a_killed_process_left_is_swept_and_that_of_a_living_one_stays(
    tmp_path: Path, data: Data
) -> None:
    folder = tmp_path / "c"
    filled(folder, data)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = {n: f"view-0005.writing-{n}" for n in (
        f"{socket.gethostname()}-{gone.pid}", f"{socket.gethostname()}-{os.getpid()}", "elsewhere-1"
    )}  # fmt: skip
    for name in names.values():
        (folder / name).mkdir()
        (folder / name / "logits-0.npy").write_bytes(b"half")
    cache = open_cache(folder, IDENTITY, OUTPUTS, data, 2)
    assert [(folder / name).exists() for name in names.values()] == [False, True, True]
    assert not cache.has(5)


def test_the_first_of_two_that_write_a_view_stays(tmp_path: Path, data: Data) -> None:
    cache = filled(tmp_path / "c", data)
    cache.write(0, batches(data, shift=900))
    first = torch.tensor([int(data.dataset.splits["train"][0])])
    assert cache.read(0, first)[0][0, 0] == float(first)


def test_images_that_are_missing_are_an_error_unless_they_cannot_be_read(
    tmp_path: Path, data: Data
) -> None:
    cache = open_cache(tmp_path / "c", IDENTITY, OUTPUTS, data, 1)
    train = data.dataset.splits["train"]
    some = [(train[1:], values(train[1:]))]
    with pytest.raises(UserError, match=f"1 images are missing, the first is {train[0]}"):
        cache.write(0, some)
    assert not cache.has(0)
    cache.write(0, some, {int(train[0]): "cut short"})
    assert cache.has(0)


def test_values_that_do_not_fit_are_refused(tmp_path: Path, data: Data) -> None:
    cache = open_cache(tmp_path / "c", IDENTITY, OUTPUTS, data, 1)
    train = data.dataset.splits["train"]
    large = values(train)
    large[1] = large[1] * 1e6
    with pytest.raises(UserError, match="features-0-body are not finite as float16"):
        cache.write(0, [(train, large)])
    assert not cache.has(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teachers": ["xyz"]}, "it was made of another teacher"),
        ({"takes": [{"size": [32, 32]}]}, "of a teacher that takes other inputs"),
        ({"classes": ["b", "a", "c"]}, "of classes in another order"),
    ],
)
def test_the_cache_of_another_teacher_is_refused(
    tmp_path: Path, data: Data, change: dict[str, Any], message: str
) -> None:
    filled(tmp_path / "c", data)
    with pytest.raises(UserError, match=message):
        open_cache(tmp_path / "c", {**IDENTITY, **change}, OUTPUTS, data, 2)


def test_the_cache_of_other_images_or_another_augmentation_is_refused(
    tmp_path: Path, data: Data
) -> None:
    filled(tmp_path / "c", data)
    other = replace(data, dataset=replace(data.dataset, fingerprint="other"))
    for changed, message in (
        (other, "it was made of other images"),
        (replace(data, augment="crop-flip"), "other preprocessing, augmentation or seed"),
        (replace(data, seed=9), "other preprocessing, augmentation or seed"),
        (
            replace(data, preprocess=replace(data.preprocess, size=(8, 8))),
            "other preprocessing, augmentation or seed",
        ),
    ):
        with pytest.raises(UserError, match=message):
            open_cache(tmp_path / "c", IDENTITY, OUTPUTS, changed, 2)
    with pytest.raises(UserError, match="other outputs"):
        open_cache(tmp_path / "c", IDENTITY, OUTPUTS[:1], data, 2)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, data: Data) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    with pytest.raises(UserError, match="this is no teacher's cache"):
        open_cache(tmp_path / "mine", IDENTITY, OUTPUTS, data, 1)
    (tmp_path / "file").write_text("keep")
    with pytest.raises(UserError, match="this is no teacher's cache"):
        open_cache(tmp_path / "file", IDENTITY, OUTPUTS, data, 1)
    assert sorted(p.name for p in tmp_path.rglob("*.txt")) == ["notes.txt"]


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "other", "json"])
def test_a_damaged_view_is_named(tmp_path: Path, data: Data, damage: str) -> None:
    cache = filled(tmp_path / "c", data)
    file = tmp_path / "c/view-0001/logits-0.npy"
    body = bytearray(file.read_bytes())
    if damage == "flip":
        body[-3] ^= 1
        file.write_bytes(body)
    elif damage == "cut":
        file.write_bytes(body[:-9])
    elif damage == "gone":
        file.unlink()
    elif damage == "other":
        shutil.copy(tmp_path / "c/view-0000/logits-0.npy", file)
    else:
        (tmp_path / "c/view-0001/view.json").write_text("[1")
    with pytest.raises(UserError, match=r"view-0001.*is damaged .*Remove the folder view-0001"):
        cache.read(1, torch.tensor([int(data.dataset.splits["train"][0])]))
    assert cache.read(0, torch.tensor([int(data.dataset.splits["train"][0])]))


def test_a_damaged_description_is_named(tmp_path: Path, data: Data) -> None:
    filled(tmp_path / "c", data)
    for text in ("{", "[]", json.dumps({"format": 99})):
        (tmp_path / "c/cache.json").write_text(text)
        with pytest.raises(UserError, match="cache"):
            open_cache(tmp_path / "c", IDENTITY, OUTPUTS, data, 2)


def test_a_disk_without_room_is_named_before_the_teacher_runs(
    tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(9000, 0, 9000))
    with pytest.raises(UserError, match=r"3 views of 42 images need 0.0 GB .*--cache-views"):
        open_cache(tmp_path / "c", IDENTITY, OUTPUTS, data, 3)
    assert not (tmp_path / "c/cache.json").exists()
