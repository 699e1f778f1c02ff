"""`vcompress sensitivity`: the layers of a bundle, ranked and printed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from vcompress.bench.errors import UserError
from vcompress.compress.cli import main
from vcompress.compress.delivery.ranking import rank_layers
from vcompress.compress.quantization.ptq import Scheme
from vcompress.compress.quantization.sensitivity import LayerSensitivity
from vcompress.compress.reporting.terminal import print_ranking


def test_every_layer_is_ranked_and_no_number_is_missing(work: Path) -> None:
    layers = rank_layers(Path("runs/net"), Scheme("onnxruntime"), "tiny_nets:batch")
    assert sorted(layer.layer for layer in layers) == ["0", "3", "9"]
    ratios = [layer.sqnr_db for layer in layers]
    assert ratios == sorted(ratios)
    assert all(10 < ratio < 100 for ratio in ratios)
    assert all(-100 <= layer.lost_accuracy <= 100 for layer in layers)


def test_the_command_prints_a_line_a_layer_and_refuses_code_that_nobody_trusts(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sensitivity", "runs/net"]
    assert main([*command, "--trust", "tiny_nets:batch"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert main([*command, "--weight-bits", "9", "--trust", "tiny_nets:batch"]) == 2
    assert "weight_bits = 9: expected 2 to 8" in capsys.readouterr().err
    assert main(command) == 2
    assert "--trust tiny_nets:batch" in capsys.readouterr().err


def test_a_layer_that_changes_nothing_has_an_infinite_ratio(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_ranking([LayerSensitivity("conv1", 31.26, 0.5), LayerSensitivity("fc", math.inf, 0.0)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["conv1", "31.3", "+0.50"]
    assert lines[2].split() == ["fc", "inf", "+0.00"]


def test_what_is_no_bundle_is_named() -> None:
    with pytest.raises(UserError, match="no such bundle"):
        rank_layers(Path("nowhere"), Scheme("tensorrt"))
