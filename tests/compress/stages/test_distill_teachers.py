"""Distillation from several teachers, from unlike ones, or none, and with unlabelled images."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.compress.distillation.teaching import Teacher
from vcompress.compress.stages import finetune
from vcompress.compress.stages.distill import Config
from vcompress.compress.training.config import Context
from vcompress.compress.training.loop import evaluate


@pytest.mark.parametrize("cached", [False, True])
def test_images_without_labels_join_the_distillation(
    taught: Context,
    run: Any,
    same: Any,
    tiny_nets: Any,
    image_folder: Callable[..., Path],
    tmp_path: Path,
    cached: bool,
) -> None:
    folder = image_folder(into="more", here=9, there=9)
    options: dict[str, Any] = {"unlabelled": str(folder), "alpha": 1.0, "epochs": 1}
    if cached:
        options["cache_teacher"] = str(tmp_path / "cache")
    with_them, details = run(taught, tiny_nets.batch, **options)
    assert details["unlabelled"] == 18
    without, _ = run(taught, tiny_nets.batch, alpha=1.0, epochs=1)
    assert not same(with_them, without)
    assert len(taught.data.dataset.targets) == 60  # the data set is not changed


@pytest.mark.parametrize(("name", "message"), [("none", "no such folder"), ("empty", "no images")])
def test_a_folder_without_images_is_named(
    taught: Context, run: Any, tiny_nets: Any, tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"--unlabelled .*{name}: {message}"):
        run(taught, tiny_nets.batch, unlabelled=str(tmp_path / name))


def test_several_teachers_teach_by_their_accuracy(
    taught: Context, run: Any, tiny_nets: Any
) -> None:
    torch.manual_seed(3)
    good, bad = tiny_nets.batch(), tiny_nets.batch()
    context = replace(taught, teacher=None)
    finetune.apply(good, finetune.Config(epochs=4, batch_size=6, lr=0.02), context)
    teachers = tuple(Teacher(net, taught.data.preprocess) for net in (good, bad))
    found = {}
    for how in ("mean", "accuracy", "confidence"):
        _, details = run(replace(context, teachers=teachers), tiny_nets.batch, ensemble=how)
        found[how] = details
    weights = found["accuracy"]["ensemble"]["weights"]
    assert weights[0] == 1.0 and weights[0] > weights[1]
    assert weights[1] * 6 == pytest.approx(round(weights[1] * 6))  # of six validation images
    assert len({tuple(details["loss"]) for details in found.values()}) == 3
    assert found["mean"]["teachers"] == 2


def test_a_teacher_with_other_inputs_gets_its_own_images(
    taught: Context, run: Any, tiny_nets: Any
) -> None:
    class Normalised(nn.Module):
        """The teacher for images that are not normalised, in another order of classes."""

        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net((x - 0.3) / 0.2)[:, [2, 0, 1]]  # type: ignore[no-any-return]

    assert taught.teacher is not None
    plain = replace(taught.data.preprocess, mean=(0.0,) * 3, std=(1.0,) * 3)
    same_one = Teacher(Normalised(taught.teacher), plain, order=(1, 2, 0))
    _, details = run(taught, tiny_nets.batch)
    _, again = run(replace(taught, teacher=None, teachers=(same_one,)), tiny_nets.batch)
    assert again["loss"] == pytest.approx(details["loss"], abs=1e-4)


def test_without_a_teacher_the_student_learns_from_its_own_average(
    taught: Context, run: Any, tiny_nets: Any
) -> None:
    alone = replace(taught, teacher=None)
    student, details = run(alone, tiny_nets.batch, method="self", epochs=6, alpha=0.5)
    assert details["teachers"] == 0
    assert evaluate(student, alone, Config(), "test") == 1.0
    with pytest.raises(UserError, match="method self has no teacher"):
        run(taught, tiny_nets.batch, method="self")
    # Beside a teacher it is one more loss.
    _, details = run(taught, tiny_nets.batch, losses=("kd=1", "self=0.5"))
    assert details["losses"] == {"kd": 1.0, "self": 0.5}


def test_a_student_larger_than_its_teacher_is_warned_of(
    taught: Context, run: Any, tiny_nets: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="vcompress"):
        run(taught, tiny_nets.group, epochs=1)
        assert "wrong way round" not in caplog.text
        run(replace(taught, teacher=tiny_nets.group()), tiny_nets.batch, epochs=1)
    assert "the student has 0.00 M parameters and its teacher 0.00 M" in caplog.text
