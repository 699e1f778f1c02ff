"""Robustness: measured on the file that ships, stored in the bundle, shown in its report."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vcompress.bench.bundle import Bundle, Preprocess
from vcompress.bench.bundle.history import read, to_json
from vcompress.bench.data.dataset import Dataset
from vcompress.bench.errors import UserError
from vcompress.compress.cli import main
from vcompress.compress.data.loader import Data
from vcompress.compress.reporting.page import render
from vcompress.compress.robustness.corruptions import CORRUPTIONS
from vcompress.compress.robustness.measure import Attack, under_attack


class ByRed(nn.Module):
    """Class 1 where the mean red of the pixels is above a half."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        red = x[:, 0].mean((1, 2))
        return torch.stack([torch.zeros_like(red), red], 1)


def test_an_image_falls_just_when_its_distance_is_in_reach() -> None:
    preprocess = Preprocess((8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)
    distances = (0.01, 0.05, 0.1, 0.2)
    pixels = [np.full((8, 8, 3), round(255 * (0.5 + d)), np.uint8) for d in distances]
    labels = np.ones(4, np.int64)
    splits = {name: np.arange(4) for name in ("train", "val", "test")}
    dataset = Dataset(
        "memory", ("dark", "red"), labels, splits, "", lambda i: Image.fromarray(pixels[i]),
        preprocess,
    )  # fmt: skip
    data = Data(dataset, preprocess)
    for epsilon, right in ((0.005, 4), (0.03, 3), (0.08, 2), (0.15, 1), (0.3, 0)):
        found = under_attack(ByRed(), pixels, labels, data, Attack(epsilon, 20))
        assert found == right / 4, epsilon


def test_an_attack_goes_through_quantisers(tiny_data: Any, tiny_nets: Any) -> None:
    """A quantised network is no safer because rounding has no slope."""
    from vcompress.compress import quantization
    from vcompress.compress.training.config import Context, TrainConfig
    from vcompress.compress.training.loop import fit

    data = tiny_data()
    torch.manual_seed(0)
    model = tiny_nets.group()
    config = TrainConfig(epochs=5, batch_size=8, lr=0.03)
    fit(model, config, Context(data, Path("w").absolute()), name="t")
    prepared = quantization.prepare(model.eval(), data.example, target="onnxruntime")
    quantization.calibrate(prepared, [data.images("train", 20)])
    test = data.dataset.splits["test"]
    pixels = [np.asarray(data.dataset.image(int(i))) for i in test]
    found = [
        under_attack(net, pixels, data.dataset.targets[test], data, Attack(0.2, 5))
        for net in (model, prepared)
    ]
    assert found[0] < 0.7 and abs(found[1] - found[0]) < 0.2, found


def test_the_command_measures_stores_and_shows(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("runs/net", "runs/other")
    args = [
        "--trust",
        "tiny_nets:batch",
        "--images",
        "6",
        "--attack-steps",
        "2",
        "--epsilon",
        "0.1",
        "--json",
        "found.json",
    ]
    assert main(["robustness", "runs/net", "runs/other", *args]) == 0
    shown = capsys.readouterr().out
    assert "PGD" in shown and "runs/other" in shown
    found = json.loads(Path("found.json").read_text())
    assert found["runs/net"] == found["runs/other"]  # the same weights, the same numbers
    measured = found["runs/net"]
    assert measured["n"] == 6
    assert set(measured["corruptions"]) == set(CORRUPTIONS)
    assert all(len(v) == 5 for v in measured["corruptions"].values())
    assert measured["mean_corrupted"] == pytest.approx(
        np.mean(list(measured["corruptions"].values()))
    )
    bundle = Bundle.open("runs/net")
    bundle.verify()
    assert to_json(bundle.history[-1].metrics.robustness) == measured
    page = Path("runs/net/report.html").read_text()
    assert "<h2>Robustness</h2>" in page
    assert f"{100 * measured['clean']:.1f} %" in page
    assert bundle.labels == ("blue", "green", "red")
    # Exported again, it is the same network.
    assert main(["export", "runs/net", "--trust", "tiny_nets:batch"]) == 0
    again = Bundle.open("runs/net")
    assert to_json(again.history[-1].metrics.robustness) == measured
    assert "<h2>Robustness</h2>" in Path("runs/net/report.html").read_text()


def test_a_bundle_without_data_or_no_bundle_is_named(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["robustness"]) == 2
    assert "no bundle given" in capsys.readouterr().err
    assert main(["robustness", "runs/net", "--epsilon", "0"]) == 2
    assert "epsilon = 0.0" in capsys.readouterr().err


def test_the_report_has_a_row_for_each_stage_that_was_measured() -> None:
    measured = {
        "n": 50, "clean": 0.9, "pgd": 0.25, "epsilon": 0.03, "steps": 10, "mean_corrupted": 0.5,
        "corruptions": {kind: [0.9, 0.8, 0.5, 0.2, 0.1] for kind in CORRUPTIONS},
    }  # fmt: skip
    metrics = {
        "test": None, "parameters": 1, "macs": 1, "onnx_bytes": 1000, "parity": {},
        "latency": {"median_ms": 1.0, "low_ms": 1.0, "high_ms": 1.0, "steady": True, "threads": 1,
                    "batch": 1, "provider": "p", "cpu": "c"},
    }  # fmt: skip
    stage = {"stage": "finetune", "model": "<b>net", "metrics": metrics}
    robust = {**stage, "metrics": {**metrics, "robustness": measured}}
    page = render(read([stage, robust]), None)
    part = page[page.index("<h2>Robustness") :]
    assert part.count("<tr>") == 2  # the heading and the second stage
    assert '<td class="left">2</td>' in part and "25.0 %" in part
    assert "50.0 %<small>90 80 50 20 10</small>" in part
    assert "&lt;b&gt;net" in part
    assert "Robustness" not in render(read([stage]), None)


def test_negative_counts_are_refused() -> None:
    from vcompress.compress.options import Options

    with pytest.raises(UserError, match="robustness = -1"):
        replace(Options(), robustness=-1)
