"""Training on images that nobody labelled, with the float network for a teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vcompress.bench.bundle import Bundle
from vcompress.bench.errors import UserError
from vcompress.compress.cli import main
from vcompress.compress.data.loader import Data
from vcompress.compress.distillation.judged import judged_by

OWN = "tiny_nets:batch"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """25 images, flat and nested, one of them broken."""
    random = np.random.default_rng(0)
    for number in range(25):
        file = tmp_path / "photos" / ("deep" if number % 2 else "") / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    return tmp_path / "photos"


def test_the_decisions_of_the_network_are_the_targets(
    photos: Path, tiny_data: Any, tiny_nets: Any
) -> None:
    data: Data = tiny_data()
    net = tiny_nets.batch().eval()
    found = judged_by(net, data, str(photos))
    train = found.dataset.splits["train"]
    assert len(train) == 25
    assert np.array_equal(found.dataset.splits["val"], data.dataset.splits["val"])
    assert np.array_equal(found.dataset.splits["test"], data.dataset.splits["test"])
    with torch.no_grad():
        for images, targets in found.loader("train", 25):
            assert torch.equal(net(images).argmax(1), targets)
    bare = judged_by(net, Data(without_val(data), data.preprocess), str(photos)).dataset
    assert (len(bare.splits["train"]), len(bare.splits["val"])) == (20, 5)
    assert not set(bare.splits["train"]) & set(bare.splits["val"])
    with pytest.raises(UserError, match="--images nowhere: no such folder"):
        judged_by(net, data, "nowhere")


def without_val(data: Data) -> Any:
    none = np.zeros(0, np.int64)
    return replace(data.dataset, splits={**data.dataset.splits, "train": none, "val": none})


def test_a_broken_image_is_left_out_where_that_is_asked(
    photos: Path, tiny_data: Any, tiny_nets: Any
) -> None:
    (photos / "00.png").write_bytes(b"no image")
    data: Data = tiny_data()
    with pytest.raises(UserError, match=r"00\.png"):
        judged_by(tiny_nets.batch(), data, str(photos))
    skipping = replace(data, dataset=replace(data.dataset, on_bad_image="skip"))
    assert len(judged_by(tiny_nets.batch(), skipping, str(photos)).dataset.splits["train"]) == 24


@pytest.mark.parametrize("stage", ["quantize", "prune"])
def test_a_bundle_without_labels_is_trained_on_images_alone(
    work: Path, photos: Path, stage: str
) -> None:
    argv = ["import", "--model", OWN, "--weights", "runs/net/weights.safetensors"]
    pre = '{"size": [16, 16]}'
    assert main([*argv, "--preprocess", pre, "--out", "runs/bare"]) == 0
    argv = [stage, "--model", "runs/bare", "--images", str(photos), "--epochs", "1"]
    argv += ["--batch-size", "8", "--trust", OWN, "--out", "runs/new"]
    argv += ["--macs", "0.6", "--round-to", "2"] if stage == "prune" else []
    assert main(argv) == 0
    found = Bundle.open("runs/new")
    assert (found.data, found.history[-1].metrics.test) == (None, None)  # type: ignore[union-attr]
    details = found.history[-1].details
    training = details["steps"][0]["training"] if stage == "prune" else details
    assert training["epochs"] == 1
    assert 0 <= training["val_score"] <= 1
