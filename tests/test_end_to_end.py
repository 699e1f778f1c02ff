"""The main job, as a user types it: a teacher becomes a student, small, in int8, and measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

NETS = """
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet


def teacher(num_classes: int) -> nn.Module:
    return _net((48, 96), num_classes)


def student(num_classes: int) -> nn.Module:
    return _net((32, 64), num_classes)


def _net(widths: tuple[int, int], num_classes: int) -> nn.Module:
    first, second = widths
    down = nn.Sequential(nn.Conv2d(first, second, 1, 2, bias=False), nn.BatchNorm2d(second))
    return nn.Sequential(
        nn.Conv2d(3, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU(),
        BasicBlock(first, first), BasicBlock(first, second, 2, down), BasicBlock(second, second),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(second, num_classes),
    )
"""


def test_a_backbone_becomes_a_small_int8_bundle_with_its_proofs(
    tmp_path: Path, image_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import onnx

    from vcompress.bench.bundle import Bundle
    from vcompress.bench.bundle.history import measured
    from vcompress.bench.cli import main as vbench
    from vcompress.compress.cli import main as vcompress
    from vcompress.compress.pipeline import measure

    image_folder(red=40, green=40, blue=40)
    (tmp_path / "end_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(measure, "LATENCY_SECONDS", 0.3)
    quick = ["--batch-size", "8", "--lr", "0.005"]

    def run(*argv: str) -> Bundle:
        assert vcompress([*argv]) == 0
        return Bundle.open(argv[argv.index("--out") + 1])

    teacher = run(
        "finetune", "--model", "end_nets:teacher", "--data", "images", "--image-size", "16",
        "--epochs", "3", *quick, "--out", "runs/teacher",
    )  # fmt: skip
    student = run(
        "distill", "--teacher", "runs/teacher", "--student", "end_nets:student", "--trust",
        "end_nets:teacher", "--epochs", "3", *quick, "--out", "runs/student",
    )  # fmt: skip
    trust = ["--trust", "end_nets:student"]
    pruned = run(
        "prune", "--model", "runs/student", "--macs", "0.5", "--epochs", "2", *quick, *trust,
        "--out", "runs/pruned",
    )  # fmt: skip
    int8 = run(
        "quantize", "--model", "runs/pruned", "--target", "onnxruntime", "--epochs", "1",
        "--batch-size", "8", *trust, "--out", "runs/int8",
    )  # fmt: skip
    shown = capsys.readouterr().out

    # Each bundle is whole, and the last one tells the whole way.
    for bundle in (teacher, student, pruned, int8):
        bundle.verify()
        assert bundle.preprocess.size == (16, 16)
    stages = [entry.stage for entry in int8.history]
    assert stages == ["finetune", "distill", "prune", "quantize"]
    assert int8.history[:3] == pruned.history
    assert [entry.model for entry in int8.history] == ["end_nets:teacher"] + [
        "end_nets:student"
    ] * 3
    metrics = [found for _, found in measured(int8.history)]
    assert len(metrics) == 4
    for found in metrics:
        assert found.parity["ok"] is True
        assert (found.test.metric, found.test.n) == ("top1", 24)
        assert found.test.value >= 0.9
        low, high = found.test.interval
        assert low < found.test.value <= high

    # Pruned to half, in fact and in the file; int8 weights are stored as int8.
    assert 0.3 < metrics[2].macs / metrics[1].macs <= 0.5
    achieved = pruned.history[-1].details["achieved"]["macs"]
    assert achieved == pytest.approx(metrics[2].macs / metrics[1].macs)
    weights = [m.parameters for m in metrics]
    assert weights[0] > weights[1] > weights[2]
    graph = onnx.load("runs/int8/model.onnx").graph
    stored = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8]
    share = sum(len(t.raw_data) for t in stored) / weights[2]
    assert share > 0.9
    floats = [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert max((len(t.raw_data) // 4 for t in floats), default=0) < 1000
    assert metrics[3].onnx_bytes < 0.6 * metrics[2].onnx_bytes < 0.6 * metrics[0].onnx_bytes

    # What the commands printed, the page, and inspect.
    for name in ("runs/teacher", "runs/student", "runs/pruned", "runs/int8"):
        assert f"report: {name}/report.html" in shown
    page = Path("runs/int8/report.html").read_text(encoding="utf-8")
    assert page.count("<circle") == 8
    assert "http://" not in page and "https://" not in page  # packages may be called http...
    assert vcompress(["inspect", "runs/int8"]) == 0
    shown = capsys.readouterr().out
    for part in ("1. finetune end_nets:teacher", "2. distill end_nets:student", "3. prune",
                 "4. quantize", "target: onnxruntime", "model.onnx"):  # fmt: skip
        assert part in shown, part

    # vbench measures both side by side, and finds the accuracy that the bundle says.
    argv = ["runs/teacher/model.onnx", "runs/int8/model.onnx", "--data", "images", "--seconds",
            "0.3", "--threads", "1", "--no-cold-start", "--json", "both.json"]  # fmt: skip
    status = vbench(argv)
    said = capsys.readouterr()
    assert status in (0, 3), said.err  # 3: too short to be sure on a busy machine
    assert "int8" in said.out
    written = json.dumps(json.loads(Path("both.json").read_text()))
    for number in (0, 3):
        assert f'"correct": {metrics[number].test.correct}' in written
    sys.modules.pop("end_nets", None)
