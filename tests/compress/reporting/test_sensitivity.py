"""The ranking of layers as a picture, a page and numbers."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from vcompress.bench.errors import UserError
from vcompress.compress.cli import main
from vcompress.compress.quantization.sensitivity import LayerSensitivity
from vcompress.compress.reporting.sensitivity import draw, write

LAYERS = [
    LayerSensitivity("features.0<b>", 12.5, 3.25),
    LayerSensitivity("features.1", 25.0, -0.5),
    LayerSensitivity("head", math.inf, 0.0),
]
SVG = "{http://www.w3.org/2000/svg}"


def test_bars_are_as_long_as_the_numbers_say() -> None:
    root = ET.fromstring(draw(LAYERS, "a & b"))
    bars = {kind: [r for r in root.iter(f"{SVG}rect") if r.get("class") == kind]
            for kind in ("sqnr", "worst", "lost", "won")}  # fmt: skip
    worst, first = float(bars["worst"][0].get("width", 0)), float(bars["sqnr"][0].get("width", 0))
    assert first == pytest.approx(2 * worst, rel=0.01)
    lost, won = float(bars["lost"][0].get("width", 0)), float(bars["won"][0].get("width", 0))
    assert lost == pytest.approx(6.5 * won, rel=0.01)
    words = [t.text for t in root.iter(f"{SVG}text")]
    assert {"features.0<b>", "12.5", "no change", "+3.25", "-0.50"} <= set(words)


def test_a_wide_name_moves_the_panels_and_everything_stays_inside() -> None:
    long = [LayerSensitivity("a" * 60, 10.0, 1.0)]
    root = ET.fromstring(draw(long, "t"))
    width = float(root.get("width", 0))
    for bar in root.iter(f"{SVG}rect"):
        assert float(bar.get("x", 0)) + float(bar.get("width", 0)) <= width


def test_the_file_is_written_as_its_ending_says(tmp_path: Path) -> None:
    for name in ("a/r.html", "r.svg", "r.json"):
        write(tmp_path / name, LAYERS, "Title")
    assert (tmp_path / "a/r.html").read_text().startswith("<!doctype html>")
    assert json.loads((tmp_path / "r.json").read_text())["layers"][2] == {
        "layer": "head", "sqnr_db": None, "lost_accuracy": 0.0,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"ends in .html, .svg, .json"):
        write(tmp_path / "r.png", LAYERS, "Title")


def test_the_command_draws_a_bundle_and_refuses_an_unknown_ending_first(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sensitivity", "runs/net", "--trust", "tiny_nets:batch", "--out"]
    assert main([*command, "picture.png"]) == 2
    assert "ends in .html" in capsys.readouterr().err
    assert main([*command, "picture.html"]) == 0
    page = Path("picture.html").read_text(encoding="utf-8")
    assert page.count('class="soft" x=') >= 6
    assert "runs/net" in page
