"""vbench measures files that give each pixel a class: table, JSON, gates, baseline, reports."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from vcompress.bench.cli import main as vbench

NAMES = ("ground", "red", "green", "blue")
QUICK = ["--task", "segmentation", "--seconds", "0.1", "--no-cold-start"]
SCHEMA = Path(__file__).parents[3] / "bench/reports/schema.json"


def network(path: Path, red: float = 1.0, channels: int = 4, whole: bool = False) -> None:
    """The class of the strongest colour; `red` weakens the first one."""
    weights = np.zeros((channels, 3, 1, 1), np.float32)
    weights[1:4, :, 0, 0] = np.diag([red, 1, 1])
    bias = np.zeros(channels, np.float32)
    bias[0] = 0.2
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["logits"])]
    result = helper.make_tensor_value_info("logits", 1, ["n", channels, None, None])
    if whole:
        nodes.append(helper.make_node("ArgMax", ["logits"], ["classes"], axis=1, keepdims=0))
        result = helper.make_tensor_value_info("classes", 7, ["n", None, None])
    graph = helper.make_graph(
        nodes, "colours", [helper.make_tensor_value_info("x", 1, ["n", 3, 32, 32])], [result],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(bias, "b")],
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve pictures of coloured squares, with masks that the first network finds whole."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    table = np.array([[0, 0, 0], [160, 0, 0], [0, 220, 0], [0, 0, 220]], np.uint8)
    for i in range(12):
        mask = rng.integers(0, 4, (4, 4)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        pixels = table[mask] + rng.integers(0, 30, (32, 32, 3)).astype(np.uint8)
        mask[:, 30:] = 255
        for name, values in (("images", pixels), ("masks", mask)):
            (tmp_path / "data/test" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(tmp_path / f"data/test/{name}/{i}.png")
    (tmp_path / "data/classes.csv").write_text("name\n" + "\n".join(NAMES) + "\n")
    network(tmp_path / "good.onnx")
    network(tmp_path / "worse.onnx", red=0.29)
    network(tmp_path / "classes.onnx", whole=True)
    return tmp_path


PLAIN = ["--preprocess", '{"size": [32, 32], "mean": [0, 0, 0], "std": [1, 1, 1]}']


def test_two_files_are_compared_pixel_by_pixel(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = vbench(
        ["good.onnx", "worse.onnx", "--data", "data", *QUICK, *PLAIN, "--json", "r.json", "--html",
         "r.html", "--junit", "r.xml", "--markdown", "r.md", "--require", "mIoU>=0.9",
         "--require", "mIoU_drop<=0.01"]
    )  # fmt: skip
    said = " ".join(capsys.readouterr().out.split())
    assert status == 1
    assert "mIoU │ 100.00% (100.00% to 100.00%)" in said
    assert "pixel accuracy" in said
    assert "boundary F1" in said
    assert "FAIL mIoU>=0.9" in said
    assert "FAIL mIoU_drop<=0.01" in said
    assert "negative flips" in said
    assert "lost most: red (100.00 % to" in said
    result = json.loads(Path("r.json").read_text())
    jsonschema.validate(result, json.loads(SCHEMA.read_text()))
    first, second = (m["accuracy"] for m in result["models"])
    assert first["metric"] == "mIoU"
    assert first["values"]["mIoU"]["value"] == 1.0
    assert [part["name"] for part in first["parts"]] == list(NAMES)
    assert first["parts"][1]["note"].endswith("% of the pixels")
    flips = result["accuracy_change"]["negative_flips"]
    assert flips == pytest.approx(
        first["values"]["pixel_accuracy"]["value"] - second["values"]["pixel_accuracy"]["value"]
    )
    assert result["accuracy_change"]["agreement"] == pytest.approx(1 - flips)
    assert "IoU by class" in Path("r.html").read_text()
    assert "mIoU_drop" in Path("r.xml").read_text()


def test_a_saved_result_is_a_baseline_with_its_pixels(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vbench(["good.onnx", "--data", "data", *QUICK, *PLAIN, "--json", "r.json"]) == 0
    capsys.readouterr()
    Path("gate.toml").write_text(
        "min_miou = 0.5\nmax_miou_drop = 0.01\nmax_negative_flips = 0.001\n"
    )
    status = vbench(
        ["worse.onnx", "--data", "data", *QUICK, *PLAIN, "--baseline", "r.json", "--gate",
         "gate.toml"]
    )  # fmt: skip
    said = " ".join(capsys.readouterr().out.split())
    assert status == 1
    assert "PASS min_miou" in said
    assert "FAIL max_miou_drop" in said
    assert "FAIL max_negative_flips" in said


def test_a_file_that_gives_classes_scores_as_its_logits_do(folder: Path) -> None:
    values = []
    for name in ("worse.onnx", "classes.onnx"):
        network(folder / "classes.onnx", red=0.29, whole=True)
        assert vbench([name, "--data", "data", *QUICK, *PLAIN, "--json", "r.json"]) == 0
        values.append(json.loads(Path("r.json").read_text())["models"][0]["accuracy"]["values"])
    assert values[0] == values[1]


def test_classes_may_be_some_of_the_outputs_in_another_order(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network of seven outputs, whose names stand in a file, on masks of four of them."""
    network(folder / "seven.onnx", channels=7)
    names = ["ground", "red", "green", "blue", "x", "y", "z"]
    Path("names.txt").write_text("\n".join(names))
    Path("data/classes.csv").write_text("name,number\nblue,3\nred,1\nground,0\ngreen,2\n")
    argv = ["seven.onnx", "--data", "data", *QUICK, *PLAIN, "--classes", "names.txt"]
    assert vbench([*argv, "--json", "r.json"]) == 0
    found = json.loads(Path("r.json").read_text())["models"][0]["accuracy"]
    assert found["values"]["mIoU"]["value"] == 1.0
    assert [part["name"] for part in found["parts"]] == names
    capsys.readouterr()
    Path("names.txt").write_text("\n".join(["grass", *names[1:]]))
    assert vbench(argv) == 2
    assert "1 of those of data are none of them: ground" in said(capsys)


def test_what_does_not_fit_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network(folder / "seven.onnx", channels=7)
    assert vbench(["seven.onnx", "--data", "data", *QUICK, *PLAIN]) == 2
    assert "seven.onnx has 7 outputs and the data 4 classes" in said(capsys)
    assert vbench(["good.onnx", "--data", "dat", *QUICK]) == 2
    assert "no such folder. Expected scenes, or a folder with images/ and masks/" in said(capsys)
    Image.fromarray(np.full((32, 32), 9, np.uint8)).save("data/test/masks/0.png")
    assert vbench(["good.onnx", "--data", "data", *QUICK]) == 2
    assert "0.png: value 9 is no class (1,024 pixels; classes.csv has 4 classes)" in said(capsys)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())
