"""`vcompress distill`, and a recipe with several teachers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vcompress.bench.bundle import Bundle
from vcompress.compress.cli import main


def relabelled(bundle: Path, out: Path, labels: list[str]) -> None:
    """A copy of the bundle that calls its classes otherwise."""
    from vcompress.bench.bundle import bundle as bundles

    found = Bundle.open(bundle)
    with bundles.create(
        out, input=found.input, preprocess=found.preprocess, labels=tuple(labels), data=None,
        history=found.history,
    ) as folder:  # fmt: skip
        for name in ("architecture.json", "weights.safetensors", "model.onnx"):
            (folder / name).write_bytes(found.file(name).read_bytes())


OWN = "tiny_nets:batch"


def test_the_command_takes_several_teachers_and_a_table_of_losses(work: Path) -> None:
    names = list(Bundle.open(work / "runs/net").labels)
    relabelled(work / "runs/net", work / "runs/other", [names[1], names[2], names[0]])
    (work / "mine.toml").write_text(
        f"""
[options]
data = "images"
[[stages]]
stage = "distill"
teacher = ["runs/net", "runs/other"]
student = "{OWN}"
epochs = 1
batch_size = 8
ensemble = "accuracy"
cache_teacher = "runs/cache"
losses.kd = 1.0
losses.at = 5
"""
    )
    assert main(["run", "mine.toml", "--out", "runs/mine", "--trust", OWN]) == 0
    bundle = Bundle.open(work / "runs/mine/1-distill")
    entry = bundle.history[-1]
    assert entry.config["losses"] == ["kd=1.0", "at=5"]
    assert set(entry.inputs) == {"teacher", "teacher-2", "student"}
    # The second one is the first with its classes called otherwise: it is wrong about all.
    assert entry.details["ensemble"]["weights"][1] == 0.0
    assert entry.details["ensemble"]["weights"][0] > 0.8
    architecture = json.loads(bundle.file("architecture.json").read_text())
    assert architecture["changes"]["shapes"] == {}
    assert sorted(p.name for p in (work / "runs/cache").iterdir()) == ["cache.json", "view-0000"]


def test_the_command_learns_without_a_teacher(work: Path) -> None:
    command = [
        "distill",
        "--student",
        OWN,
        "--data",
        "images",
        "--image-size",
        "16",
        "--epochs",
        "1",
    ]
    assert main([*command, "--method", "self", "--out", "runs/self"]) == 0
    assert set(Bundle.open(work / "runs/self").history[-1].inputs) == {"student"}


def test_a_student_with_other_inputs_than_its_teacher_is_made(work: Path) -> None:
    assert main([
        "distill", "--teacher", "runs/net", "--student", OWN, "--image-size", "8", "--epochs", "1",
        "--method", "fitnet", "--trust", OWN, "--out", "runs/small",
    ]) == 0  # fmt: skip
    assert Bundle.open(work / "runs/small").preprocess.size == (8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--student", OWN, "--data", "images"], "distill needs a teacher"),
        (
            ["--student", OWN, "--method", "self", "--teacher", "runs/net", "--trust", OWN],
            "distill takes no teacher with these options",
        ),
        (
            ["--student", OWN, "--teacher", "runs/odd", "--trust", OWN, "--data", "images"],
            "knows 3 classes, the data 3: it lacks",
        ),
        (
            ["--student", OWN, "--teacher", "runs/net", "--trust", OWN, "--losses", "kd=1", "ta=2"],
            "unknown loss 'ta'. Did you mean 'at'?",
        ),
    ],
)
def test_a_mistake_is_one_message(
    work: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    names = list(Bundle.open(work / "runs/net").labels)
    relabelled(work / "runs/net", work / "runs/odd", ["violet", *names[1:]])
    assert main(["distill", *options]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
