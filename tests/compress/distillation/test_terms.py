"""What a sum of distillation losses needs: its task, a teacher, features of both networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vcompress.bench.errors import UserError
from vcompress.compress.distillation.terms import check_task, needs_teacher, on_features, pairs_for
from vcompress.compress.tasks.classification import Classification
from vcompress.compress.tasks.multilabel import MultiLabel

EXAMPLE = torch.zeros(1, 3, 16, 16)


def network(width: int) -> nn.Module:
    """Its features halve twice."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 3),
    )  # fmt: skip


def test_a_loss_that_the_task_lacks_is_refused_with_those_it_has() -> None:
    check_task({"kd": 1.0, "dkd": 0.5, "at": 50.0}, Classification())
    with pytest.raises(UserError, match="method = 'dkd': multilabel is distilled by kd"):
        check_task({"kd": 1.0, "dkd": 0.5}, MultiLabel())


def test_the_students_own_average_alone_needs_no_teacher() -> None:
    assert not needs_teacher({"self": 1.0})
    assert needs_teacher({"self": 1.0, "kd": 1.0})
    assert needs_teacher({"kd": 1.0})


def test_maps_are_compared_at_every_pair_and_embeddings_at_the_last() -> None:
    student, teacher = network(4), network(8)

    def found(*terms: str) -> list[tuple[int, int]]:
        pairs = pairs_for(terms, student, EXAMPLE, teacher, EXAMPLE, ("auto",))
        return [(pair.student.shape[0], pair.teacher.shape[0]) for pair in pairs]

    assert on_features(("kd", "srd", "at")) == ("srd", "at")
    assert found("kd", "self") == []
    whole = found("kd", "at")
    assert len(whole) > 1 and whole[-1] == (8, 16)
    assert found("fitnet", "srd") == whole
    assert found("srd") == found("infonce", "kd") == whole[-1:]
