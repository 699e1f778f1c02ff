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
from vcompress.compress.distillation.teaching import Teacher

OWN = "tiny_nets:batch"
BOTH = "tiny_nets:batch,tiny_nets:group"


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


def test_several_teachers_decide_together_each_with_its_preprocessing_and_order(
    photos: Path, tiny_data: Any, tiny_nets: Any
) -> None:
    data: Data = tiny_data()
    nets = [tiny_nets.batch().eval(), tiny_nets.batch().eval()]
    darker = replace(data.preprocess, mean=(0.6,) * 3)
    teachers = [Teacher(nets[0], data.preprocess), Teacher(nets[1], darker, order=(2, 0, 1))]
    found = judged_by(teachers, data, str(photos)).dataset
    for number in found.splits["train"]:
        total = torch.zeros(3)
        for net, teacher in zip(nets, teachers, strict=True):
            values = found.values(int(number), teacher.preprocess)
            assert values is not None
            with torch.no_grad():
                total += teacher.in_order(net(torch.from_numpy(values)[None])).softmax(1)[0]
        assert found.targets[number] == int(total.argmax())


def test_a_student_is_distilled_on_images_alone(work: Path, photos: Path) -> None:
    argv = ["import", "--model", OWN, "--weights", "runs/net/weights.safetensors"]
    pre = '{"size": [16, 16]}'
    assert main([*argv, "--preprocess", pre, "--out", "runs/bare"]) == 0
    argv = ["distill", "--teacher", "runs/bare", "--student", "tiny_nets:group", "--epochs", "2"]
    argv += ["--images", str(photos), "--batch-size", "8", "--trust", BOTH]
    assert main([*argv, "--out", "runs/new"]) == 0
    found = Bundle.open("runs/new")
    assert (found.data, found.history[-1].metrics.test) == (None, None)  # type: ignore[union-attr]
    assert found.labels == Bundle.open("runs/bare").labels
    details = found.history[-1].details
    assert (details["images"], details["unlabelled"]) == (20, 0)
    assert 0 <= details["val_score"] <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--unlabelled", "photos"), "give one"),
        (("--images", "nowhere"), "--images nowhere: no such folder"),
    ],
)
def test_what_cannot_be_distilled_on_images_is_one_message(
    work: Path, photos: Path, options: tuple[str, ...], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    argv = ["distill", "--teacher", "runs/net", "--student", "tiny_nets:group", "--trust"]
    argv += [BOTH, "--images", str(photos), "--out", "runs/new"]
    assert main([*argv, *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


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
