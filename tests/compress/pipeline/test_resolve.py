"""Which outputs the folders of the user's data are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

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


def test_masks_with_the_networks_classes_in_another_order_get_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 1
    for n in range(10):
        Image.fromarray(np.full((8, 8, 3), 20 * n, np.uint8)).save(f"data/images/{n}.png")
        Image.fromarray(mask).save(f"data/masks/{n}.png")
    Path("data/classes.csv").write_text("number,name\n0,road\n1,sky\n")
    options = Options(data="data", task="segmentation", image_size=8)
    network = bundle("nets:own", ("sky", "tree", "road"))
    found = open_data(options, [], trains=False, fixed=network)
    assert found.classes == ("sky", "tree", "road")
    pair = found.dataset.both(0, found.preprocess)
    assert pair is not None and sorted(set(pair[1].ravel().tolist())) == [0, 2]
    assert pair[1][0].tolist() == [2, 2, 2, 2, 0, 0, 0, 0]
