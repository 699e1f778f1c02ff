"""Distillation as a stage: the student follows the teacher and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vcompress.bench.errors import UserError
from vcompress.compress import stages
from vcompress.compress.data.loader import Data
from vcompress.compress.stages import distill, finetune
from vcompress.compress.stages.contract import Kind, Role
from vcompress.compress.training.config import Context

CONFIG = distill.Config(epochs=6, batch_size=6, lr=0.03, alpha=1.0)


@pytest.fixture
def taught(tiny_data: Callable[..., Data], tiny_nets: Any, tmp_path: Path) -> Context:
    torch.manual_seed(0)
    context = Context(tiny_data(), tmp_path)
    teacher = tiny_nets.batch()
    finetune.apply(teacher, finetune.Config(epochs=4, batch_size=6, lr=0.02), context)
    return replace(context, teacher=teacher)


def test_the_student_learns_from_the_teacher_alone(taught: Context, tiny_nets: Any) -> None:
    """With alpha 1 the labels do not count: wrong ones change nothing."""
    data = taught.data
    images = torch.cat([images for images, _ in data.loader("test", 12)])
    ends = []
    for labels in (data.dataset.labels, np.zeros_like(data.dataset.labels)):
        torch.manual_seed(1)
        student = tiny_nets.group()
        # The validation picks the best epoch by labels, so only the last one is comparable.
        wrong = replace(taught, data=replace(data, dataset=replace(data.dataset, labels=labels)))
        outcome = distill.apply(student, replace(CONFIG, epochs=1), wrong)
        ends.append({k: v.clone() for k, v in outcome.model.state_dict().items()})
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])
    torch.manual_seed(1)
    student = tiny_nets.group()
    distill.apply(student, CONFIG, taught)
    assert taught.teacher is not None
    with torch.no_grad():
        agree = (student(images).argmax(1) == taught.teacher(images).argmax(1)).float().mean()
    assert float(agree) > 0.9


def test_the_teacher_is_not_changed(taught: Context, tiny_nets: Any) -> None:
    teacher = taught.teacher
    assert teacher is not None
    teacher.train()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    distill.apply(tiny_nets.group(), replace(CONFIG, epochs=1), taught)
    assert not teacher.training
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def test_label_smoothing_changes_the_student(taught: Context, tiny_nets: Any) -> None:
    ends = []
    for smoothing in (0.0, 0.4):
        torch.manual_seed(1)
        student = tiny_nets.group()
        config = replace(CONFIG, epochs=1, alpha=0.5, label_smoothing=smoothing)
        distill.apply(student, config, taught)
        ends.append(student[0].weight.detach().clone())
    assert not torch.equal(ends[0], ends[1])


def test_a_teacher_of_other_classes_is_refused(taught: Context, tiny_nets: Any) -> None:
    other = replace(taught, teacher=tiny_nets.group(num_classes=5))
    with pytest.raises(UserError, match=r"student gives \(1, 3\) and the teacher \(1, 5\)"):
        distill.apply(tiny_nets.group(), CONFIG, other)


def test_no_teacher_is_refused(taught: Context, tiny_nets: Any) -> None:
    with pytest.raises(UserError, match="distill needs a teacher"):
        distill.apply(tiny_nets.group(), CONFIG, replace(taught, teacher=None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature = 0.0: it must be above 0"),
        ({"alpha": 1.5}, "alpha = 1.5: it must be from 0 to 1"),
        ({"alpha": -0.1}, "alpha = -0.1"),
        ({"epochs": -1}, "epochs = -1"),
        ({"losses": ("kdd=1",)}, "unknown loss 'kdd'. Did you mean 'kd'?"),
        ({"losses": ("kd=0",)}, "'kd=0'; expected NAME=WEIGHT, a number above 0"),
        ({"losses": ("kd=x",)}, "'kd=x'; expected NAME=WEIGHT"),
        ({"losses": ("kd=nan",)}, "'kd=nan'"),
        ({"losses": ("kd=1", "kd=2")}, "kd is there twice"),
        ({"losses": ("kd=1",), "method": "at"}, "give one of them"),
        ({"cache_views": -1}, "cache_views = -1"),
        ({"self_decay": 1.0}, "self_decay = 1.0"),
    ],
)
def test_a_bad_option_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        distill.Config(**change)
    assert message in str(caught.value)


def test_it_takes_a_trained_teacher_and_changes_a_fresh_student() -> None:
    stage = stages.load("distill")
    teacher, student = Role("teacher", Kind.SEVERAL), Role("student", Kind.FRESH, changed=True)
    assert stage.roles == stage.asked(distill.Config()) == (teacher, student)
    assert stage.changed == student
    assert stage.asked(distill.Config(method="self")) == (student,)
