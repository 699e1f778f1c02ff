"""Multi-label classification and regression go the whole way by themselves: from a table of images
to an int8 file that is measured, gated and predicts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
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
        nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes),
    )
"""
SEVERAL = """

class Apart(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*list(_net(16, 1))[:-1])
        self.heads = nn.ModuleList(nn.Linear(16, 1) for _ in range(num_classes))

    def forward(self, x):
        x = self.body(x)
        return torch.cat([head(x) for head in self.heads], 1)
"""
COLOURS = ("red", "green", "blue")
QUICK = ["--batch-size", "8", "--lr", "0.02", "--trust"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """120 pictures in which each colour is there or not, with both tables beside them."""
    from vcompress.compress.pipeline import measure

    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    labels, numbers = ["image,labels"], ["image,redness,blueness"]
    for n in range(120):
        has = rng.random(3) < 0.5
        level = np.where(has, rng.uniform(110, 160, 3), rng.uniform(0, 50, 3))
        pixels = rng.integers(0, 60, (16, 16, 3)) + level
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"data/{n}.png")
        labels.append(
            f"{n}.png,{'|'.join(c for c, there in zip(COLOURS, has, strict=True) if there)}"
        )
        numbers.append(f"{n}.png,{10 * level[0]:.1f},{level[2] / 100:.4f}")
    (tmp_path / "data/labels.csv").write_text("\n".join(labels))
    (tmp_path / "data/targets.csv").write_text("\n".join(numbers))
    (tmp_path / "task_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(measure, "LATENCY_SECONDS", 0.1)
    yield tmp_path
    sys.modules.pop("task_nets", None)


def run(*argv: str) -> Bundle:
    assert vcompress([*argv]) == 0, argv
    return Bundle.open(argv[argv.index("--out") + 1])


def whole_way(task: str) -> list[Bundle]:
    """Finetune, distill, prune, quantize."""
    size = ["--image-size", "16", "--augment", "none"]
    teacher = run(
        "finetune", "--task", task, "--model", "task_nets:wide", "--data", "data", *size,
        "--epochs", "12", *QUICK, "task_nets:wide", "--robustness", "8", "--out", "runs/t",
    )  # fmt: skip
    student = run(
        "distill", "--teacher", "runs/t", "--student", "task_nets:narrow", "--losses", "kd=1",
        "fitnet=1", *size, "--epochs", "10", *QUICK, "task_nets:wide", "--out", "runs/s",
    )  # fmt: skip
    small = run(
        "prune", "--model", "runs/s", "--macs", "0.6", "--importance", "taylor", "--epochs", "4",
        *QUICK, "task_nets:narrow", "--round-to", "4", "--out", "runs/p",
    )  # fmt: skip
    int8 = run(
        "quantize", "--model", "runs/p", "--epochs", "2", "--calibration-images", "32", "--lr",
        "0.001", "--batch-size", "8", "--keep-float", "auto", "--trust", "task_nets:narrow",
        "--out", "runs/q",
    )  # fmt: skip
    return [teacher, student, small, int8]


def test_labels_of_a_table_go_the_whole_way(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundles = whole_way("multilabel")
    assert [b.task for b in bundles] == ["multilabel"] * 4
    assert bundles[0].labels == ("blue", "green", "red")
    scores = [b.history[-1].metrics.test for b in bundles]  # type: ignore[union-attr]
    assert [s.metric for s in scores if s] == ["mAP"] * 4
    assert all(s is not None and s.value > 0.95 and s.interval[0] <= s.value for s in scores)
    assert set(scores[0].values) == {"f1_micro", "f1_macro", "exact_match"}  # type: ignore[union-attr]
    assert scores[0].correct is None  # type: ignore[union-attr]
    page = bundles[-1].file("report.html").read_text(encoding="utf-8")
    assert "mAP" in page
    assert "top-1" not in page
    teacher_page = bundles[0].file("report.html").read_text(encoding="utf-8")
    assert "MAP on 8 test images" in teacher_page
    assert "Where they disagree" in bundles[1].file("report.html").read_text(encoding="utf-8")

    status = vbench(
        ["runs/t", "runs/q", "--seconds", "0.1", "--no-cold-start", "--json", "out.json",
         "--require", "mAP>=0.8", "--require", "mAP_drop<=0.2", "--html", "out.html"]
    )  # fmt: skip
    assert status == 0
    said = capsys.readouterr().out
    assert "mAP" in said and "F1, macro" in said and "PASS  mAP>=0.8" in said
    result = json.loads(Path("out.json").read_text())
    assert result["models"][1]["accuracy"]["metric"] == "mAP"
    assert result["accuracy_change"]["metric"] == "mAP"
    assert len(result["models"][1]["accuracy"]["labels"][0]) == 3
    assert vbench(["runs/q", "--seconds", "0.1", "--no-cold-start", "--baseline", "out.json"]) in (
        0, 3,
    )  # fmt: skip

    red = Image.fromarray(np.full((16, 16, 3), (180, 20, 20), np.uint8))
    with load("runs/q") as model:
        assert [p.label for p in model.predict(red)] == ["red"]
        assert {p.label for p in model.predict(red, threshold=0.0)} == set(bundles[0].labels)
    red.save("red.png")
    capsys.readouterr()
    assert vcompress(["predict", "runs/q", "red.png", "--threshold", "0.99999"]) == 0
    assert "nothing above" in capsys.readouterr().out
    assert vcompress(["verify", "runs/q"]) == 0
    own = ["export", "runs/q", "--trust", "task_nets:narrow", "--out", "own.onnx"]
    assert vcompress([*own, "--sigmoid"]) == 0
    with open_session("own.onnx") as probable, open_session("runs/q/model.onnx") as plain:
        image = np.zeros((1, 3, 16, 16), np.float32)
        (logits,) = plain.run({"input": image}).values()
        (found,) = probable.run({"input": image}).values()
    assert found == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-6)
    assert vcompress([*own, "--softmax"]) == 2
    assert "--softmax: the task is multilabel, which has --sigmoid" in capsys.readouterr().err
    assert vcompress(["sensitivity", "runs/p", "--trust", "task_nets:narrow"]) == 0
    torch.save(load_network(bundles[1], "task_nets:narrow").model.state_dict(), "net.pth")
    again = run(
        "import", "--task", "multilabel", "--model", "task_nets:narrow", "--weights", "net.pth",
        "--data", "data", "--image-size", "16", "--out", "runs/i",
    )  # fmt: skip
    assert again.history[0].metrics.test.value == scores[1].value  # type: ignore[union-attr]


def test_numbers_of_a_table_go_the_whole_way(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundles = whole_way("regression")
    assert [b.task for b in bundles] == ["regression"] * 4
    assert bundles[0].labels == ("redness", "blueness")
    scores = [b.history[-1].metrics.test for b in bundles]  # type: ignore[union-attr]
    # The numbers spread over hundreds and over ones: the mean error is that of the first, halved.
    assert all(s is not None and s.metric == "mae" and s.value < 120 for s in scores)
    assert all(s is not None and s.values["r2"].value > 0.8 for s in scores)
    page = bundles[-1].file("report.html").read_text(encoding="utf-8")
    assert "MAE" in page
    assert "top-1" not in page
    status = vbench(
        ["runs/t", "runs/q", "--seconds", "0.1", "--no-cold-start", "--json", "out.json",
         "--require", "r2>=0.5", "--require", "mae_rise<=200"]
    )  # fmt: skip
    assert status == 0
    assert "R²" in capsys.readouterr().out
    with load("runs/q") as model:
        dark, bright = (
            model.predict(Image.fromarray(np.full((16, 16, 3), (r, 30, 30), np.uint8)))
            for r in (40, 180)
        )
    assert [p.label for p in dark] == ["redness", "blueness"]
    assert dark[0].score < bright[0].score - 500
    assert vcompress(["verify", "runs/q"]) == 0


@pytest.mark.parametrize(("task", "names"), [("regression", 2), ("multilabel", 3)])
def test_a_network_with_a_layer_for_each_number_is_trained_as_it_was_built(
    folder: Path, caplog: pytest.LogCaptureFixture, task: str, names: int
) -> None:
    """No layer gives all numbers, so none can begin at their mean: it says so and goes on."""
    (folder / "task_nets.py").write_text("import torch\n" + NETS + SEVERAL)
    own = "task_nets:Apart"
    with caplog.at_level("WARNING", "vcompress"):
        bundle = run(
            "finetune", "--task", task, "--model", own, "--data", "data", "--image-size", "16",
            "--augment", "none", "--epochs", "1", *QUICK, own, "--out", "runs/a",
        )  # fmt: skip
    said = [r.getMessage() for r in caplog.records if "range of the targets" in r.getMessage()]
    assert len(said) == (task == "regression")
    assert all("the layer that gives the 2 logits, was not found" in text for text in said)
    assert len(bundle.labels) == names
    model, network = load(bundle.path), load_network(bundle, own)
    assert len(network.model.heads) == names
    with Image.open(folder / "data/0.png") as image:
        assert len(model.predict(image, top=names)) <= names


def test_a_head_begins_at_the_range_of_the_targets(folder: Path) -> None:
    """Before any training the numbers are where the targets are, though the weights are random."""
    bundle = run(
        "finetune", "--task", "regression", "--model", "task_nets:wide", "--data", "data",
        "--image-size", "16", "--augment", "none", "--epochs", "0", *QUICK, "task_nets:wide",
        "--out", "runs/s",
    )  # fmt: skip
    targets = open_dataset("data", task="regression")
    train = targets.targets[targets.splits["train"]]
    head = load_network(bundle, "task_nets:wide").model[-1]
    bias = head.bias.detach().numpy()
    limit = train.std(0) / np.sqrt(32)  # where torch draws a bias from, in spreads of the targets
    assert (abs(bias - train.mean(0)) <= limit * 1.001).all()
    assert train.mean(0)[0] > 100 * limit[1]


def test_a_task_is_not_changed_on_the_way(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = [
        "--model", "task_nets:narrow", "--data", "data", "--image-size", "16", "--epochs", "1",
        "--batch-size", "8",
    ]  # fmt: skip
    run("finetune", "--task", "multilabel", *start, "--out", "runs/m")
    more = ["--trust", "task_nets:narrow", "--out", "runs/x"]
    for argv, message in (
        (["prune", "--task", "regression", "--model", "runs/m", "--macs", "0.5"],
         "its task is multilabel, and --task regression was given"),
        (["finetune", "--task", "ranking", *start], "unknown task 'ranking'"),
        (["finetune", "--task", "regression", "--mixup", "0.2", *start],
         "--mixup: the task regression has no such thing"),
        (["finetune", "--task", "multilabel", "--balanced", *start],
         "--balanced: the task multilabel has no such thing"),
        (["distill", "--teacher", "runs/m", "--student", "task_nets:narrow", "--method", "dkd"],
         "'dkd': multilabel is distilled by kd"),
    ):  # fmt: skip
        assert vcompress([*argv, *more]) == 2, argv
        assert message in capsys.readouterr().err
    assert not Path("runs/x").exists()
    assert vbench(["runs/m", "--require", "top1>=0.5", "--seconds", "0.1", "--no-cold-start"]) == 2
    assert "a multilabel has mAP" in capsys.readouterr().err
