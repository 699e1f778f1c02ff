"""Who teaches a quantised network: the teacher of its history, the one named, or nobody else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vcompress.bench.bundle import Bundle
from vcompress.compress.bundles.heritage import original_teacher
from vcompress.compress.cli import main

TRUST = ["--trust", "tiny_nets:batch"]
QAT = [
    "--method", "qat", "--epochs", "1", "--batch-size", "8", "--calibration-images", "8", *TRUST,
]  # fmt: skip


@pytest.fixture
def student(work: Path) -> Path:
    """A bundle whose history says that `runs/net` taught it."""
    command = ["distill", "--teacher", "runs/net", "--student", "tiny_nets:batch", *TRUST]
    assert main([*command, "--epochs", "1", "--batch-size", "8", "--out", "runs/student"]) == 0
    return Path("runs/student")


def taught_by(out: str, *options: str) -> str:
    assert main(["quantize", *QAT, "--out", out, *options]) == 0
    return str(Bundle.open(out).history[-1].details["teacher"])


def test_the_teacher_of_the_history_teaches_unless_another_is_named_or_none(student: Path) -> None:
    model = ("--model", str(student))
    assert taught_by("runs/a", *model) == "runs/net"
    assert taught_by("runs/b", *model, "--teacher", "none") == "the float network"
    assert taught_by("runs/c", *model, "--teacher", "runs/student") == "runs/student"
    assert taught_by("runs/d", "--model", "runs/net") == "the float network"


def test_a_teacher_is_found_where_the_folder_of_runs_went(student: Path) -> None:
    Path("runs").rename("moved")
    found = original_teacher(Bundle.open("moved/student"))
    assert found is not None
    assert found.path.resolve() == Path("moved/net").resolve()


def test_a_teacher_that_is_gone_or_changed_is_not_used(
    student: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = Path("runs/net/weights.safetensors")
    body = bytearray(weights.read_bytes())
    body[-1] ^= 1
    weights.write_bytes(body)
    with caplog.at_level("INFO"):
        assert original_teacher(Bundle.open(student)) is None
    assert "runs/net of distill is gone or has changed" in caplog.text
    shutil.rmtree("runs/net")
    assert original_teacher(Bundle.open(student)) is None
