"""`[joint]`: distilled, pruned in steps and quantised on one budget, under one teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vcompress.bench.bundle import Bundle
from vcompress.bench.errors import UserError
from vcompress.compress.cli import main
from vcompress.compress.pipeline.recipe import Recipe, read_recipe
from vcompress.compress.training.config import TrainConfig
from vcompress.compress.training.schedule import share_of_peak, within

OWN = "tiny_nets:batch"


def read(tmp_path: Path, text: str) -> Recipe:
    (tmp_path / "mine.toml").write_text(text)
    return read_recipe(tmp_path / "mine.toml")


@pytest.mark.parametrize("command", ["finetune", "distill", "prune", "quantize", "sparsify"])
def test_the_part_of_a_schedule_is_no_flag(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert "--schedule" in shown and "--part" not in shown
    with pytest.raises(SystemExit) as end:
        main([command, "--part", "0", "0.5"])
    assert end.value.code == 2


def test_a_budget_is_divided_into_three_stages_with_one_schedule(tmp_path: Path) -> None:
    recipe = read(
        tmp_path,
        """
        [joint]
        teacher = "r50"
        student = "r18"
        epochs = 30
        lr = 0.002
        steps = 4
        distill.losses.kd = 1
        prune.macs = 0.5
        quantize.target = "tensorrt"
        """,
    )
    assert [s.name for s in recipe.steps] == ["joint-distill", "joint-prune", "joint-quantize"]
    distill, prune, quantize = (step.config for step in recipe.steps)
    assert [distill.epochs, prune.epochs, quantize.epochs] == [15, 3, 6]
    assert (prune.steps, prune.step_epochs) == (4, 2)  # type: ignore[attr-defined]
    assert 15 + 3 * 2 + 3 + 6 == 30
    assert [c.part for c in (distill, prune, quantize)] == [(0.0, 0.5), (0.5, 0.8), (0.8, 1.0)]
    assert {c.lr for c in (distill, prune, quantize)} == {0.002}
    whole = TrainConfig(epochs=30)
    steps = [within(replace(prune, epochs=2), 2 * n, 9) for n in range(3)] + [within(prune, 6, 9)]
    parts = [distill, *steps, quantize]
    rates = [share_of_peak(step, 4, c) for c in parts for step in range(4 * c.epochs)]
    expected = [share_of_peak(step, 4, whole) for step in range(4 * 30)]
    assert rates == pytest.approx(expected, abs=1e-9)
    assert distill.losses == ("kd=1",)  # type: ignore[attr-defined]
    assert quantize.target == "tensorrt"  # type: ignore[attr-defined]
    assert [dict(step.given) for step in recipe.steps] == [
        {"teacher": "r50", "student": "r18"}, {"teacher": "r50", "model": "joint-distill"},
        {"teacher": "r50", "model": "joint-prune"},
    ]  # fmt: skip


def test_the_stage_before_is_the_teacher(tmp_path: Path) -> None:
    recipe = read(
        tmp_path,
        '[[stages]]\nstage = "finetune"\nmodel = "r50"\n'
        '[joint]\nstudent = "r18"\nprune.macs = 0.5\n',
    )
    assert [step.given.get("teacher") for step in recipe.steps] == [None] + ["1-finetune"] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('student = "r18"', "[joint]: give teacher"),
        ('teacher = "r50"', "joint.student"),
        ('student = "r18"\nteacher = "r50"', "exactly one of macs"),
        (
            'student = "r18"\nteacher = "r50"\nprune.mac = 1',
            "unknown key 'mac'. Did you mean 'macs'",
        ),
        ('student = "r18"\nteacher = "r50"\nprunes.macs = 1', "unknown key 'joint.prunes'"),
        ('student = "r18"\nteacher = "r50"\nepochs = 5', "leaves a part without an epoch"),
        ('student = "r18"\nteacher = "r50"\nsteps = 0', "leaves a part without an epoch"),
        ('student = "r18"\nteacher = "r50"\nshares = [0.5, 0.4, 0.2]', "three that add up to 1"),
        ('student = "r18"\nteacher = "r50"\nshares = [0.5, 0.5]', "expected 3 values"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, f"[joint]\n{text}\n")
    assert message in str(caught.value)


def test_a_student_is_made_small_under_one_teacher(work: Path) -> None:
    (work / "joint.toml").write_text(
        f"""
        [options]
        data = "images"
        [joint]
        teacher = "runs/net"
        student = "{OWN}"
        epochs = 5
        shares = [0.4, 0.4, 0.2]
        steps = 2
        prune.macs = 0.6
        prune.round_to = 1
        distill.batch_size = 8
        prune.batch_size = 8
        quantize.batch_size = 8
        """
    )
    assert main(["run", "joint.toml", "--trust", OWN, "--out", "runs/joint"]) == 0
    bundle = Bundle.open(work / "runs/joint/joint-quantize")
    assert [e.stage for e in bundle.history[-3:]] == ["distill", "prune", "quantize"]
    teachers = {e.inputs["teacher"]["weights_sha256"] for e in bundle.history[-3:]}
    assert len(teachers) == 1
    macs = [entry.metrics.macs for entry in bundle.history[-3:]]
    assert macs[1] <= 0.65 * macs[0]
    page = (work / "runs/joint/report.html").read_text()
    assert "distill" in page and "quantize" in page
