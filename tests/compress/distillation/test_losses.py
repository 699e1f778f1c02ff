"""Losses against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from vcompress.bench.errors import UserError
from vcompress.compress.distillation.losses import (
    ON_LOGITS,
    Parts,
    dist,
    distillation,
    dkd,
    kd,
    lskd,
    on_logits,
)

TEACHER = torch.tensor([[math.log(3.0), 0.0]])  # probabilities 3/4 and 1/4 at T = 1
STUDENT = torch.tensor([[0.0, 0.0]])  # 1/2 and 1/2


def test_kd_is_the_divergence_worked_out_by_hand() -> None:
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(kd(STUDENT, TEACHER, 1.0)) == pytest.approx(expected, rel=1e-6)


def test_kd_at_another_temperature_is_scaled_by_its_square() -> None:
    top = math.sqrt(3) / (math.sqrt(3) + 1)  # of the teacher at T = 2
    expected = 4 * (top * math.log(top / 0.5) + (1 - top) * math.log((1 - top) / 0.5))
    assert float(kd(STUDENT, TEACHER, 2.0)) == pytest.approx(expected, rel=1e-6)


def test_kd_is_summed_over_classes_and_averaged_over_the_batch() -> None:
    one = float(kd(STUDENT, TEACHER, 1.0))
    assert float(kd(STUDENT.repeat(5, 1), TEACHER.repeat(5, 1), 1.0)) == pytest.approx(one)
    mixed = kd(torch.cat([STUDENT, TEACHER]), torch.cat([TEACHER, TEACHER]), 1.0)
    assert float(mixed) == pytest.approx(one / 2)


def test_kd_is_zero_at_equality_and_so_is_its_gradient() -> None:
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = kd(logits, logits.detach() + 3.0, 4.0)  # a shift changes no probability
    loss.backward()
    assert abs(float(loss.detach())) < 1e-5
    assert logits.grad is not None and float(logits.grad.abs().max()) < 1e-6


def test_the_gradient_keeps_its_scale_with_temperature() -> None:
    """Hinton et al., equation 3: for a high T it becomes (student - teacher) / classes."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(1, 5, generator=generator)
    teacher -= teacher.mean()
    student = torch.randn(1, 5, generator=generator)
    student -= student.mean()
    for temperature, tolerance in ((50.0, 0.05), (1000.0, 0.003)):
        leaf = student.clone().requires_grad_()
        kd(leaf, teacher, temperature).backward()
        assert leaf.grad is not None
        assert torch.allclose(leaf.grad, (student - teacher) / 5, atol=tolerance)


def test_alpha_weighs_the_teacher_against_the_labels() -> None:
    labels = torch.tensor([1])
    hard, soft = math.log(2), float(kd(STUDENT, TEACHER, 3.0))
    for alpha in (0.0, 0.3, 1.0):
        found = distillation(STUDENT, TEACHER, labels, temperature=3.0, alpha=alpha)
        assert float(found) == pytest.approx(alpha * soft + (1 - alpha) * hard, rel=1e-6)


def test_label_smoothing_reaches_the_labels_part() -> None:
    labels = torch.tensor([0])
    found = distillation(TEACHER, TEACHER, labels, temperature=1.0, alpha=0.5, label_smoothing=0.2)
    assert float(found) == pytest.approx(
        0.5 * float(F.cross_entropy(TEACHER, labels, label_smoothing=0.2)), rel=1e-6
    )


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature: float) -> None:
    with pytest.raises(UserError, match="it must be above 0"):
        kd(STUDENT, TEACHER, temperature)


def test_other_numbers_of_classes_are_refused() -> None:
    with pytest.raises(UserError, match=r"student gives \(1, 2\) and the teacher \(1, 3\) logits"):
        kd(STUDENT, torch.zeros(1, 3), 1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_give_a_finite_loss(dtype: torch.dtype) -> None:
    big = torch.tensor([[60.0, -60.0]], dtype=dtype)
    assert math.isfinite(float(kd(big, -big, 1.0)))


def test_dkd_is_both_parts_worked_out_by_hand() -> None:
    # Teacher 1/2, 1/4, 1/4; student 1/4, 1/4, 1/2; the label is class 0.
    teacher = torch.tensor([[0.5, 0.25, 0.25]]).log()
    student = torch.tensor([[0.25, 0.25, 0.5]]).log()
    binary = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    others = 0.5 * math.log(0.5 / (1 / 3)) + 0.5 * math.log(0.5 / (2 / 3))
    found = dkd(student, teacher, torch.tensor([0]), 1.0, target_weight=2.0, other_weight=3.0)
    assert float(found) == pytest.approx(2 * binary + 3 * others, rel=1e-5)


def test_dkd_with_the_teachers_own_weights_is_kd_again() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(1, 6, generator=generator),
        torch.randn(1, 6, generator=generator),
    )
    others = 1 - float(F.softmax(teacher / 2, 1)[0, 4])
    found = dkd(student, teacher, torch.tensor([4]), 2.0, target_weight=1.0, other_weight=others)
    assert float(found) == pytest.approx(float(kd(student, teacher, 2.0)), rel=1e-5)


def test_dist_is_one_minus_both_correlations() -> None:
    # Predictions of two samples; the student has the two samples the wrong way round.
    teacher = torch.tensor([[0.8, 0.2], [0.4, 0.6]]).log()
    student = teacher.flip(0)
    # Each sample's two values correlate with -1; so do each class's over the batch.
    assert float(dist(student, teacher, 1.0)) == pytest.approx(4.0, abs=1e-5)
    assert float(dist(teacher, teacher, 3.0)) == pytest.approx(0.0, abs=1e-5)
    assert float(dist(student, teacher, 1.0, within_weight=0.0)) == pytest.approx(2.0, abs=1e-5)


def test_standardised_logits_forget_their_shift_and_size() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(4, 6, generator=generator),
        torch.randn(4, 6, generator=generator),
    )
    same = float(lskd(student, teacher, 2.0))
    assert float(lskd(3 * student + 5, 0.1 * teacher - 1, 2.0)) == pytest.approx(same, rel=1e-4)
    scaled = [x / x.std(1, keepdim=True) for x in (student, teacher)]
    assert same == pytest.approx(float(kd(scaled[0], scaled[1], 2.0)), rel=1e-4)


@pytest.mark.parametrize("method", ON_LOGITS)
def test_every_method_is_zero_for_the_teacher_itself_and_trains(method: str) -> None:
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) % 5
    assert abs(float(on_logits(method, logits, logits, labels, 2.0))) < 1e-4
    leaf = torch.zeros(8, 5).add(torch.arange(5.0)).requires_grad_()
    on_logits(method, leaf, logits, labels, 2.0).backward()
    assert leaf.grad is not None and float(leaf.grad.abs().max()) > 1e-3


def test_the_parts_of_a_loss_are_added_up_over_an_epoch() -> None:
    parts, weight = Parts(), torch.tensor(2.0, requires_grad=True)
    for step in (1.0, 3.0):
        value = parts.add({"a": weight * step, "b": torch.tensor(0.5)})
        assert float(value) == 2 * step + 0.5 and value.requires_grad
    assert parts.means(2) == {"a": 4.0, "b": 0.5}
    assert parts.means(2) == {}  # the next epoch starts again
    parts.add({"cross_entropy": torch.tensor(1.0)})
    assert parts.means(1) == {}  # one part is the loss itself
