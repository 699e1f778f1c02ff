"""Classes of the data among the outputs of a network."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vcompress.bench.data import classes
from vcompress.bench.data.classes import (
    find_outputs,
    imagenet_classes,
    named_outputs,
    read_classes,
    with_outputs,
)
from vcompress.bench.errors import EnvironmentLacks, UserError
from vcompress.bench.tasks import open_dataset, open_recorded

NAMES = ("n01 tench, Tinca", "red fox", "n02 crane, Grus", "n03 crane", "fox")


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("n01 tench, Tinca", 0), ("n01", 0), ("tench, Tinca", 0), ("tench", 0),
        ("red fox", 1), ("red", 1), ("fox", 4), ("n03", 3),
        ("crane", None),  # two outputs are called so
        ("crane, Grus", 2), ("Tinca", None), ("n0", None), ("2", None),
    ],
)  # fmt: skip
def test_a_class_is_found_by_the_whole_name_or_by_a_part_that_one_output_has(
    name: str, output: int | None
) -> None:
    assert find_outputs([name], NAMES) == (output,)


def test_numbers_are_outputs_only_where_they_may_be_and_no_names() -> None:
    assert find_outputs(["3", "007", "0"], ["x"] * 8, numbers=True) == (3, 7, 0)
    assert find_outputs(["3", "8"], ["x"] * 8, numbers=True) == (3, None)
    assert find_outputs(["3", "a"], "abcd", numbers=True) == (None, 0)
    assert find_outputs(["1", "2"], ["2", "1"], numbers=True) == (1, 0)
    assert find_outputs(["1"], ["a", "b"]) == (None,)


def test_targets_are_numbers_of_outputs_and_the_images_stay(
    image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    data = open_dataset(str(image_folder(red=1, blue=2)))
    found = with_outputs(data, ("red", "green", "blue"), "net")
    assert data.targets.tolist() == [0, 0, 1]  # blue, blue, red
    assert found.targets.tolist() == [2, 2, 0]
    assert found.classes == ("red", "green", "blue")
    assert found.fingerprint == data.fingerprint
    assert np.array_equal(found.splits["test"], data.splits["test"])
    assert with_outputs(data, data.classes, "net") is data
    with pytest.raises(UserError, match=r"net: its classes are red, green, and 1 of those.*: blue"):
        with_outputs(data, ("red", "green"), "net")
    with pytest.raises(UserError, match=r"blue and red of .* are one output"):
        with_outputs(data, ("blue red",), "net")
    (tmp_path / "names.txt").write_text("x red\n\ny blue\n")
    assert named_outputs(data, tmp_path / "names.txt").targets.tolist() == [1, 1, 0]


def test_a_record_is_opened_with_the_outputs_of_its_bundle(
    image_folder: Callable[..., Path],
) -> None:
    data = open_dataset(str(image_folder(red=1, blue=2)))
    record = data.record()
    assert record is not None
    for labels in (("red", "sea", "blue"), ("x red", "y", "z blue")):
        found = open_recorded(record, "classification", None, "runs/net", labels)
        assert found.targets.tolist() == [2, 2, 0]
    named = with_outputs(
        open_dataset(str(image_folder("few", **{"2": 1, "0": 1}))), "abc", "", True
    )
    again = named.record()
    assert again is not None
    found = open_recorded(again, "classification", None, "runs/net", tuple("abc"))
    assert (found.targets.tolist(), found.classes) == ([0, 2], ("a", "b", "c"))
    other = open_recorded(record, "classification", None, "runs/net", ("cat", "dog"))
    assert other.classes == ("blue", "red")  # whoever measures says that they differ


def test_the_classes_of_imagenet_are_those_of_timm_which_is_not_imported() -> None:
    timm = pytest.importorskip("timm")
    info = timm.data.ImageNetInfo("imagenet-1k")
    loaded = {name: sys.modules.pop(name) for name in list(sys.modules) if name[:4] == "timm"}
    try:
        names = read_classes(Path("imagenet"))
        assert not any(name.startswith("timm") for name in sys.modules)
    finally:
        sys.modules.update(loaded)
    assert len(set(names)) == 1000
    assert [name.split()[0] for name in names] == info.label_names()
    assert names[0] == "n01440764 tench, Tinca tinca"
    assert all(re.fullmatch(r"n\d{8} \S.*", name) for name in names)
    # torchvision's own names of the same outputs, but where it has changed a doubled one
    from torchvision.models import ResNet18_Weights

    theirs = ResNet18_Weights.DEFAULT.meta["categories"]
    found = find_outputs(theirs, names)
    assert sum(place == number for number, place in enumerate(found)) > 900
    assert all(place in (number, None) for number, place in enumerate(found))


def test_without_timm_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classes, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentLacks, match="pip install timm, or give --classes FILE"):
        imagenet_classes()


def test_a_file_with_a_name_twice_or_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a\na\n")
    with pytest.raises(UserError, match="stands there twice"):
        read_classes(tmp_path / "labels.txt")
    with pytest.raises(UserError, match="cannot be read"):
        read_classes(tmp_path)
