"""Segmentation goes the whole way by itself: from folders of images and masks to an int8 file that
is measured, gated, exported with its answer, and predicts."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from vcompress.bench import load
from vcompress.bench.bundle import Bundle
from vcompress.bench.cli import main as vbench
from vcompress.bench.runtimes import open_session
from vcompress.bench.tasks import open_dataset
from vcompress.compress.bundles.store import load_network
from vcompress.compress.cli import main as vcompress

NETS = """
from torch import nn


def wide(num_classes: int) -> nn.Module:
    return _net(32, num_classes)


def narrow(num_classes: int) -> nn.Module:
    return _net(16, num_classes)


def _net(width: int, num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, num_classes, 1),
    )
"""
QUICK = ["--batch-size", "8", "--lr", "0.02", "--trust"]
LEVELS = np.array([[40, 40, 40], [200, 60, 60], [60, 60, 200]], np.uint8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """80 pictures of 24 x 32 with a red and a blue rectangle, their masks and the classes' names;
    the first column of each mask is of no class."""
    from vcompress.compress.pipeline import measure

    rng = np.random.default_rng(0)
    for name in ("images", "masks", "more"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for n in range(80):
        mask = np.zeros((24, 32), np.uint8)
        for number in (1, 2):
            top, left = rng.integers(0, 14), rng.integers(1, 20)
            mask[top : top + 10, left : left + 12] = number
        noise = rng.integers(-30, 30, (24, 32, 3))
        pixels = (LEVELS[mask].astype(int) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"data/images/{n}.png")
        mask[:, 0] = 255
        Image.fromarray(mask).save(tmp_path / f"data/masks/{n}.png")
    (tmp_path / "data/more").rmdir()
    (tmp_path / "data/classes.csv").write_text("number,name\n0,ground\n1,red\n2,blue\n")
    (tmp_path / "mask_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(measure, "LATENCY_SECONDS", 0.1)
    yield tmp_path
    sys.modules.pop("mask_nets", None)


def run(*argv: str) -> Bundle:
    assert vcompress([*argv]) == 0, argv
    return Bundle.open(argv[argv.index("--out") + 1])


def test_masks_go_the_whole_way(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    wide, narrow = "mask_nets:wide", "mask_nets:narrow"
    plain = '{"size": [24, 32], "mean": [0.3, 0.3, 0.3], "std": [0.3, 0.3, 0.3]}'
    teacher = run(
        "finetune", "--task", "segmentation", "--model", wide, "--data", "data", "--preprocess",
        plain, "--augment", "affine", "--epochs", "6", "--dice", "1", "--class-weights",
        "frequency", *QUICK, wide, "--out", "runs/t",
    )  # fmt: skip
    student = run(
        "distill", "--teacher", "runs/t", "--student", narrow, "--losses", "cwd=3", "skd=10",
        "--epochs", "5", *QUICK, wide, "--out", "runs/s",
    )  # fmt: skip
    small = run(
        "prune", "--model", "runs/s", "--macs", "0.6", "--importance", "taylor", "--epochs", "3",
        *QUICK, narrow, "--round-to", "4", "--out", "runs/p",
    )  # fmt: skip
    int8 = run(
        "quantize", "--model", "runs/p", "--epochs", "1", "--calibration-images", "16", "--lr",
        "0.001", "--batch-size", "8", "--trust", narrow, "--out", "runs/q",
    )  # fmt: skip
    bundles = [teacher, student, small, int8]
    assert [b.task for b in bundles] == ["segmentation"] * 4
    assert int8.labels == ("ground", "red", "blue")
    metrics = [b.history[-1].metrics for b in bundles]
    for found in metrics:
        assert found is not None and found.test.metric == "mIoU" and found.test.value > 0.8
        assert found.parity["ok"] is True
        assert set(found.test.values) == {"pixel_accuracy", "boundary_f1"}
    assert metrics[2].macs <= 0.6 * metrics[1].macs  # type: ignore[union-attr]
    graph = onnx.load("runs/q/model.onnx").graph
    assert sum(t.data_type == onnx.TensorProto.INT8 for t in graph.initializer) >= 3
    said = capsys.readouterr().out
    lines = [record.getMessage() for record in caplog.records]
    assert any(
        re.search(r"^finetune .* \(.*cross_entropy .*dice |dice .*cross_ent", x) for x in lines
    )
    assert any(re.search(r"^distill .* \(.*teacher ", x) for x in lines)
    assert "against float: mIoU" in said and "layers run in integers" in said

    # The score is that of the file, worked out here pixel by pixel.
    dataset = open_dataset("data", task="segmentation")
    session = open_session(Path("runs/q/model.onnx"))
    hits, unions = np.zeros(3), np.zeros(3)
    for i in dataset.splits["test"]:
        pair = dataset.both(int(i), int8.preprocess)
        assert pair is not None
        logits = torch.from_numpy(session.run({session.inputs[0].name: pair[0][None]})["logits"])
        assert logits.shape == (1, 3, 12, 16)
        large = torch.nn.functional.interpolate(logits, size=(24, 32), mode="bilinear")
        best, mask = large.argmax(1)[0].numpy(), pair[1]
        for k in range(3):
            known = mask != 255
            hits[k] += ((best == k) & (mask == k)).sum()
            unions[k] += (((best == k) | (mask == k)) & known).sum()
    assert metrics[3].test.value == pytest.approx((hits / unions).mean(), abs=1e-6)  # type: ignore[union-attr]

    # vbench compares and gates; the network of the bundle is trained on and loads again.
    argv = ["runs/t/model.onnx", "runs/q/model.onnx", "--data", "data", "--seconds", "0.1",
            "--no-cold-start", "--json", "both.json"]  # fmt: skip
    assert vbench(argv) in (0, 3)
    change = json.loads(Path("both.json").read_text())["accuracy_change"]
    assert change["metric"] == "mIoU" and 0 < change["agreement"] <= 1
    assert load_network(int8, narrow).model.training in (True, False)

    # The answer in the file: a byte for each pixel, the same that the bundle predicts.
    assert vcompress(
        ["export", "runs/q", "--argmax", "--resize-in-graph", "--out", "answer.onnx", "--trust",
         narrow]
    ) == 0  # fmt: skip
    answer = open_session(Path("answer.onnx"))
    image = dataset.image(0)
    pair = dataset.both(0, int8.preprocess)
    assert pair is not None
    decided = answer.run({answer.inputs[0].name: pair[0][None]})["classes"]
    assert decided.dtype == np.uint8 and decided.shape == (1, 24, 32)
    shown = load("runs/q").predict(image)
    areas = {found.label: found.score for found in shown}
    share = np.bincount(decided.ravel(), minlength=3) / decided.size
    assert areas == pytest.approx(dict(zip(int8.labels, share, strict=True)), abs=0.002)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model", "r18"], "expected logits [1, 3, h, w], for each pixel one"),
        (["--model", "lraspp+mnv3s", "--mixup", "0.2"], "--mixup: the task segmentation has no"),
        (["--model", "lraspp+mnv3s", "--augment", "rand"], "--augment rand moves the pixels"),
    ],
)
def test_what_makes_no_sense_of_masks_is_one_message(
    folder: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["finetune", "--task", "segmentation", "--data", "data", "--image-size", "32"]
    assert vcompress([*given, *argv, "--epochs", "1", "--out", "runs/x"]) == 2
    assert message in capsys.readouterr().err and not Path("runs/x").exists()


def test_a_network_of_maps_asks_for_its_task(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--student", "lraspp+mnv3s", "--classes", "3", "--image-size", "64", "--cache", "c"]
    assert vcompress(["estimate", *given]) == 2
    assert "expected logits [1, 3], one for each class of the data. Such maps are for --task " in (
        capsys.readouterr().err
    )


def test_a_task_without_maps_has_no_such_loss(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["finetune", "--data", "digits", "--model", "r18", "--dice", "1", "--out", "runs/x"]
    assert vcompress(given) == 2
    assert "--dice: the task classification has no such thing" in capsys.readouterr().err
