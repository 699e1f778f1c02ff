"""The sweep of learning rates."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vcompress.bench.errors import UserError
from vcompress.compress.cli import main
from vcompress.compress.data.loader import Data
from vcompress.compress.training.config import TrainConfig
from vcompress.compress.training.lr_finder import plot, suggest, sweep

CONFIG = TrainConfig(batch_size=8, optimizer="sgd")


def test_the_suggestion_is_where_the_loss_falls_most_steeply() -> None:
    rates = np.logspace(-5, 0, 51)
    x = np.log10(rates)
    losses = 2 - 1 / (1 + np.exp(-4 * (x + 2.5))) + 5 * np.maximum(0, x + 0.8) ** 2
    suggestion, highest = suggest(rates.tolist(), losses.tolist())
    assert np.log10(suggestion) == pytest.approx(-2.5, abs=0.11)
    assert np.log10(highest) == pytest.approx(x[np.argmin(losses)])


@pytest.mark.parametrize("losses", [np.ones(20), np.linspace(1, 2, 20), np.full(5, 0.1)])
def test_a_loss_that_does_not_fall_gives_no_suggestion(losses: np.ndarray) -> None:
    with pytest.raises(UserError, match="does not fall at any of these rates"):
        suggest(np.logspace(-5, 0, len(losses)).tolist(), losses.tolist())


def test_the_sweep_rises_exponentially_and_changes_nothing(
    tiny_data: Callable[..., Data], tiny_nets: Any
) -> None:
    torch.manual_seed(0)
    model, data = tiny_nets.batch().eval(), tiny_data()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = sweep(model, data, CONFIG, low=1e-4, high=10.0, steps=40)
    again = sweep(model, data, CONFIG, low=1e-4, high=10.0, steps=40)
    assert found == again
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model.training and all(p.grad is None for p in model.parameters())
    ratios = np.array(found.rates[1:]) / np.array(found.rates[:-1])
    assert ratios == pytest.approx([1e5 ** (1 / 39)] * len(ratios))
    assert found.rates[0] == pytest.approx(1e-4)
    assert 1e-4 < found.suggestion < found.highest <= found.rates[-1]
    # Training with it works.
    assert min(found.losses) < 0.7 * found.losses[0]


def test_a_loss_that_blows_up_ends_the_sweep(
    tiny_data: Callable[..., Data], tiny_nets: Any
) -> None:
    torch.manual_seed(0)
    config = TrainConfig(batch_size=8, optimizer="sgd", clip_norm=0.0)
    found = sweep(tiny_nets.group(), tiny_data(), config, low=1e-3, high=1e4, steps=60)
    assert found.stopped and found.rates[-1] < 1e4
    assert all(np.isfinite(found.losses))


def test_the_plot_is_svg_that_stands_alone(tiny_data: Callable[..., Data], tiny_nets: Any) -> None:
    torch.manual_seed(0)
    found = sweep(tiny_nets.batch(), tiny_data(), CONFIG, low=1e-4, high=1.0, steps=30)
    root = ET.fromstring(plot(found))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(root.findall(".//{*}circle")) == len(found.rates)


@pytest.mark.parametrize("change", [{"low": 0.0}, {"low": 2.0}, {"steps": 3}])
def test_a_range_that_cannot_be_swept_is_refused(
    tiny_data: Callable[..., Data], tiny_nets: Any, change: dict[str, Any]
) -> None:
    options = {"low": 1e-4, "high": 1.0, "steps": 30, **change}
    with pytest.raises(UserError, match="expected 0 < low < high"):
        sweep(tiny_nets.batch(), tiny_data(), CONFIG, **options)


def test_the_command_prints_a_table_and_writes_the_plot(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--data", "images", "--image-size", "16", "--batch-size", "8", "--steps", "30"]
    assert main(["lr-find", "--model", "tiny_nets:batch", *args]) == 0
    shown = capsys.readouterr().out
    assert "suggestion: --lr " in shown and "learning rate  smoothed loss" in shown
    assert "plot: runs/tiny_nets-batch-lr.svg" in shown
    assert Path("runs/tiny_nets-batch-lr.svg").read_text().startswith("<svg ")
    assert main(["lr-find", "--model", "tiny_nets:batch", *args, "--out", "plot.png"]) == 2
    assert "ends in .svg" in capsys.readouterr().err
