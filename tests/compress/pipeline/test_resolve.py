"""Which outputs the folders of the user's data are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vcompress.bench.errors import UserError
from vcompress.compress.options import Options
from vcompress.compress.pipeline.resolve import open_data

NUMBERS = tuple(map(str, range(1000)))


def bundle(model: str, labels: tuple[str, ...]) -> Any:
    return SimpleNamespace(labels=labels, history=[SimpleNamespace(model=model)], path="runs/net")


def test_plain_folders_of_wnids_fit_networks_of_torchvision_and_timm(
    image_folder: Callable[..., Path],
) -> None:
    pytest.importorskip("timm")
    options = Options(data=str(image_folder(n01443537=1, n15075141=1)), image_size=16)
    for model in ("mobilenet_v2", "timm:resnet18"):
        found = open_data(options, [], trains=False, fixed=bundle(model, NUMBERS)).dataset
        assert found.targets.tolist() == [1, 999]
        assert found.classes == NUMBERS
    own = open_data(options, [], trains=False, fixed=bundle("nets:own", NUMBERS)).dataset
    assert own.classes == ("n01443537", "n15075141")  # nobody knows: refused by `check_fits`
    named = Options(data=options.data, image_size=16, classes="imagenet")
    found = open_data(named, [], trains=False, fixed=bundle("nets:own", NUMBERS)).dataset
    assert found.targets.tolist() == [1, 999]
    labelled = bundle("mobilenet_v2", tuple(f"x{n}" for n in range(1000)))
    other = open_data(options, [], trains=False, fixed=labelled).dataset
    assert other.classes == ("n01443537", "n15075141")  # its labels are none of ImageNet's


def test_what_is_trained_has_a_training_part_and_the_classes_of_its_data(
    image_folder: Callable[..., Path],
) -> None:
    whole = Options(data=str(image_folder("whole", red=10, blue=10)), image_size=16)
    three = bundle("nets:own", ("red", "green", "blue"))
    assert open_data(whole, [], fixed=three).classes == ("blue", "red")
    assert open_data(whole, [], trains=False, fixed=three).classes == three.labels
    few = Options(data=str(image_folder("few", red=1, blue=1)), image_size=16)
    assert len(open_data(few, [], trains=False).dataset.splits["test"]) == 2
    with pytest.raises(UserError, match="a split needs at least 3"):
        open_data(few, [])
    with pytest.raises(UserError, match="--classes says what the folders of --data are"):
        open_data(Options(classes="imagenet"), [])
