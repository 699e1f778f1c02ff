"""Data by role: labelled ones that are only measured on, and unlabelled ones for calibration."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from vcompress.bench.bundle import Bundle
from vcompress.compress.cli import main

OWN = "tiny_nets:batch"
PLAIN = '{"size": [16, 16], "mean": [0, 0, 0], "std": [1, 1, 1]}'


def status(*argv: str) -> int:
    return main([*argv, *([] if argv[0] == "import" else ["--trust", OWN])])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    found = capsys.readouterr()
    return " ".join((found.out + found.err).split())


def test_data_with_some_of_the_classes_measure_without_a_training_part(
    work: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Two of three classes, one image each, under the numbers of their outputs."""
    (work / "labels.txt").write_text("a blue\nb green\nc red\n")
    for folder, name in (("2", "red"), ("0", "blue")):
        (work / "few" / folder).mkdir(parents=True)
        shutil.copy(f"images/{name}/003.png", f"few/{folder}/one.png")
    argv = ["import", "--model", OWN, "--weights", "runs/net/weights.safetensors", "--data", "few"]
    argv += ["--preprocess", PLAIN]
    assert status(*argv, "--out", "runs/odd") == 2
    assert "2 classes, the checkpoint's head has 3" in capsys.readouterr().err
    assert status(*argv, "--classes", "labels.txt", "--out", "runs/few") == 0
    imported = Bundle.open("runs/few")
    assert imported.labels == ("a blue", "b green", "c red")
    net = onnxruntime.InferenceSession("runs/few/model.onnx")
    right = 0
    for number in (0, 2):
        pixels = np.asarray(Image.open(f"few/{number}/one.png"), np.float32).transpose(2, 0, 1)
        right += int(net.run(None, {"input": pixels[None] / 255})[0].argmax()) == number
    assert imported.history[0].metrics.test.value == right / 2
    assert status("sensitivity", "runs/few", "--calibration", "images") == 0
    assert status("export", "runs/few") == 0
    argv = ["--model", "runs/few", "--method", "ptq", "--min-sqnr-db", "-100"]
    caplog.clear()
    assert status("quantize", *argv, "--out", "runs/q") == 0
    warned = "few has no training part: calibrating on images that are measured"
    assert warned in caplog.text
    caplog.clear()
    argv += ["--calibration", "images", "--data", "few", "--classes", "labels.txt"]
    assert status("quantize", *argv, "--out", "runs/q2") == 0
    assert "no training part" not in caplog.text
    found = Bundle.open("runs/q2")
    assert found.labels == ("a blue", "b green", "c red")
    assert found.history[-1].metrics.test.n == 2
    assert status("quantize", "--model", "runs/few", "--method", "qat", "--out", "runs/no") == 2
    assert "a split needs at least 3" in said(capsys)


def test_a_bundle_without_data_is_quantised_with_images_that_nobody_labelled(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["import", "--model", OWN, "--weights", "runs/net/weights.safetensors"]
    assert status(*argv, "--preprocess", PLAIN, "--out", "runs/bare") == 0
    argv = ["--model", "runs/bare", "--method", "ptq", "--min-sqnr-db", "-100"]
    assert status("quantize", *argv, "--calibration", "images", "--out", "runs/q") == 0
    found = Bundle.open("runs/q")
    assert found.data is None
    assert found.history[-1].metrics.test is None
    assert found.history[-1].details["calibration_images"] == 40  # the other 20 judge
    assert status("quantize", *argv, "--calibration", "nowhere", "--out", "runs/q2") == 2
    assert "--calibration nowhere: no such folder" in said(capsys)
