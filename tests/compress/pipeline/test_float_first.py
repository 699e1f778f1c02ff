"""The float network is measured before it is quantised, and the int8 file against it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from vcompress.bench.bundle import Bundle
from vcompress.bench.data.dataset import Dataset
from vcompress.bench.tasks import open_dataset
from vcompress.bench.tasks.metrics import metric
from vcompress.compress.cli import main
from vcompress.compress.reporting.against_float import float_lines


def test_quantize_says_what_float_reached_and_what_int8_changed_on_the_same_images(
    work: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    random = np.random.default_rng(0)
    for number in range(60):  # noise, so that rounding decides about many
        file = Path("noise/test", ("blue", "green", "red")[number % 3], f"{number}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    argv = ["quantize", "--model", "runs/net", "--method", "ptq", "--trust", "tiny_nets:batch"]
    argv += ["--data", "noise", "--weight-bits", "2", "--min-sqnr-db", "-100"]
    assert main([*argv, "--out", "runs/q"]) == 0
    bundle = Bundle.open("runs/q")
    data = open_dataset("noise")
    held = data.splits["test"]
    right = []
    for file in ("runs/net/model.onnx", "runs/q/model.onnx"):
        net = onnxruntime.InferenceSession(file)
        best = [
            int(net.run(None, {"input": pixels(bundle, data, int(i))})[0].argmax()) for i in held
        ]
        right.append(np.array(best) == data.targets[held])
    change = bundle.history[-1].details["against_float"]
    assert change["n"] == len(held) == 60
    assert change["difference"] == pytest.approx(right[1].mean() - right[0].mean())
    assert change["only_a"] == int((right[0] & ~right[1]).sum()) > 0
    low, high = change["difference_interval"]
    assert low <= change["difference"] <= high
    before = f"in float: top-1 {right[0].mean():.2%} (".replace("%", " %")
    assert before in caplog.text
    assert caplog.text.index(before) < caplog.text.index("against float: top-1")
    text = " ".join(capsys.readouterr().out.split())
    changed = metric("top1").change(change["difference"])
    assert f"quantize, against float: top-1 {changed} (" in text
    name, n, a, b = change["lost"][0]
    of_class = data.targets[held] == data.classes.index(name)
    assert [n, a, b] == [int(x) for x in (of_class.sum(), *(r[of_class].sum() for r in right))]
    (line,) = float_lines(bundle.history)
    assert f"lost most: {name} ({a} to {b} of {n})" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "ptq", "--calibration", "nowhere"), "--calibration nowhere: no such folder"),
        (("--method", "qat", "--images", "nowhere"), "--images nowhere: no such folder"),
    ],
)
def test_what_cannot_be_quantised_is_refused_before_anything_is_measured(
    work: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    options: tuple[str, ...],
    message: str,
) -> None:
    argv = ["quantize", "--model", "runs/net", "--trust", "tiny_nets:batch", "--out", "runs/q"]
    assert main([*argv, *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert "in float:" not in caplog.text


def pixels(bundle: Bundle, data: Dataset, number: int) -> np.ndarray:
    values = data.values(number, bundle.preprocess)
    assert values is not None
    return values[None]


def test_a_record_that_is_none_of_ours_is_passed_over(work: Path) -> None:
    manifest = json.loads(Path("runs/net/manifest.json").read_text())
    assert "against_float" not in json.dumps(manifest)  # nothing was quantised
    (entry,) = Bundle.open("runs/net").history
    assert float_lines([entry]) == []
    odd = type(entry)("quantize", "net", details={"against_float": {"n": "many"}})
    assert float_lines([odd]) == []
