"""Losses on features against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from vcompress.bench.errors import UserError
from vcompress.compress.distillation.feature_losses import (
    attention,
    embedding,
    fitnet,
    infonce,
    srd,
)


def test_the_hint_is_the_squared_distance_over_the_teachers_norm() -> None:
    teacher = torch.tensor([[[[3.0, 0.0]], [[0.0, 4.0]]], [[[1.0, 1.0]], [[1.0, 1.0]]]])
    student = torch.tensor([[[[0.0, 0.0]], [[0.0, 4.0]]], [[[1.0, 1.0]], [[1.0, 3.0]]]])
    # Of the two samples 9 / 25 and 4 / 4.
    assert float(fitnet(student, teacher)) == pytest.approx((9 / 25 + 1) / 2, rel=1e-6)
    assert float(fitnet(teacher, teacher)) == 0.0
    assert float(fitnet(torch.zeros_like(teacher), teacher)) == pytest.approx(1.0)
    assert float(fitnet(10 * student, 10 * teacher)) == pytest.approx((9 / 25 + 1) / 2, rel=1e-6)


def test_the_attention_of_several_channels_is_the_mean_of_their_squares() -> None:
    # Student: means of squares 9 and 16, so the map is (9, 16) / sqrt(337). Teacher: (1, 0).
    student = torch.tensor([[[[3.0, 4.0]], [[-3.0, -4.0]]]])
    teacher = torch.tensor([[[[5.0, 0.0]]]])
    norm = math.sqrt(81 + 256)
    expected = (9 / norm - 1) ** 2 + (16 / norm) ** 2
    assert float(attention(student, teacher)) == pytest.approx(expected, rel=1e-6)
    away = torch.tensor([[[[0.0, 1.0]]]])
    assert float(attention(away, teacher)) == pytest.approx(2.0)
    assert float(attention(7 * teacher, teacher)) == pytest.approx(0.0, abs=1e-12)


def test_infonce_is_the_cross_entropy_of_finding_ones_own_teacher() -> None:
    student = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    teacher = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    half = math.sqrt(0.5)
    first = -math.log(math.exp(2.0) / (math.exp(2.0) + math.exp(2 * half)))
    second = -math.log(math.exp(2 * half) / (1 + math.exp(2 * half)))
    found = infonce(student, teacher, temperature=0.5)
    assert float(found) == pytest.approx((first + second) / 2, rel=1e-6)


def test_infonce_does_not_contrast_samples_of_one_class_but_those_without_a_label() -> None:
    same = torch.ones(4, 3)
    everything = float(infonce(same, same))
    assert everything == pytest.approx(math.log(4))
    assert float(infonce(same, same, torch.tensor([0, 0, 1, 2]))) == pytest.approx(
        (2 * math.log(3) + 2 * math.log(4)) / 4
    )
    assert float(infonce(same, same, torch.tensor([-1, -1, -1, -1]))) == pytest.approx(everything)
    assert float(infonce(same, same, torch.tensor([2, 2, 2, 2]))) == pytest.approx(0.0)


def test_srd_is_the_logarithm_of_the_fourth_power_of_the_distance_of_standard_scores() -> None:
    # Two samples: standard scores are -1 and 1, in the other order for the teacher.
    student = torch.tensor([[0.0, 10.0], [2.0, 30.0]])
    teacher = torch.tensor([[5.0, 30.0], [1.0, 10.0]])
    assert float(srd(student, teacher)) == pytest.approx(math.log(1 + 2**4), rel=1e-3)
    assert float(srd(student, teacher, power=2.0)) == pytest.approx(math.log(1 + 4), rel=1e-3)
    assert float(srd(student, 3 * student + 7)) == pytest.approx(0.0, abs=1e-6)


def test_an_embedding_is_the_mean_over_the_places() -> None:
    maps = torch.arange(12.0).reshape(1, 2, 2, 3)
    assert embedding(maps).tolist() == [[2.5, 8.5]]


@pytest.mark.parametrize("loss", [fitnet, attention, infonce, srd])
def test_features_that_do_not_match_are_refused_with_both_shapes(loss: object) -> None:
    sizes = ([4, 8], [4, 9]) if loss in (infonce, srd) else ([2, 3, 4, 4], [2, 3, 2, 2])
    with pytest.raises(UserError) as caught:
        loss(torch.ones(sizes[0]), torch.ones(sizes[1]))  # type: ignore[operator]
    assert f"student's features {sizes[0]} do not match the teacher's {sizes[1]}" in str(
        caught.value
    )


def test_a_temperature_of_nought_is_refused() -> None:
    with pytest.raises(UserError, match=r"temperature = 0.0: it must be above 0"):
        infonce(torch.ones(2, 2), torch.ones(2, 2), temperature=0.0)


@pytest.mark.parametrize("loss", [fitnet, attention, infonce, srd])
def test_a_dead_or_equal_teacher_gives_finite_values_and_gradients(loss: object) -> None:
    shape = (4, 6) if loss in (infonce, srd) else (4, 6, 2, 2)
    for teacher in (torch.zeros(shape), torch.ones(shape)):
        student = torch.ones(shape).requires_grad_()
        value = loss(student, teacher)  # type: ignore[operator]
        value.backward()
        assert student.grad is not None
        assert torch.isfinite(value) and bool(torch.isfinite(student.grad).all())
