"""Losses of maps, against their formulas written out and against the losses of single places."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from vcompress.compress.distillation import losses
from vcompress.compress.distillation.feature_losses import structure
from vcompress.compress.distillation.map_losses import cwd, dice, on_logits, places, resized
from vcompress.compress.training.focal import focal_of_pixels


def _maps(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_places_are_the_vectors_of_the_map() -> None:
    maps = _maps(0, 2, 3, 4, 5)
    assert torch.equal(places(maps)[7], maps[0, :, 1, 2])
    assert torch.equal(places(maps)[20 + 19], maps[1, :, 3, 4])


@pytest.mark.parametrize("method", ["kd", "lskd", "dist"])
def test_a_map_is_distilled_as_a_batch_of_its_places(method: str) -> None:
    student, teacher = _maps(1, 2, 5, 3, 4), _maps(2, 2, 5, 3, 4)
    wanted = getattr(losses, method)(places(student), places(teacher), 2.0)
    assert on_logits(method, student, teacher, 2.0) == pytest.approx(float(wanted))


def test_cwd_is_the_divergence_of_each_classs_map() -> None:
    student, teacher, temperature = _maps(3, 2, 3, 2, 2), _maps(4, 2, 3, 2, 2), 4.0
    total = 0.0
    for b in range(2):
        for k in range(3):
            s = (student[b, k].flatten() / temperature).softmax(0)
            t = (teacher[b, k].flatten() / temperature).softmax(0)
            total += float((t * (t / s).log()).sum())
    assert float(cwd(student, teacher, temperature)) == pytest.approx(total / 6 * 16, rel=1e-5)
    # A class's map may be shifted as a whole: where it is strong is all that counts.
    shifted = teacher + torch.tensor([5.0, -3.0, 0.5])[None, :, None, None]
    assert float(cwd(shifted, teacher, temperature)) == pytest.approx(0, abs=1e-6)


def test_a_teacher_of_another_stride_is_brought_to_the_students_size() -> None:
    teacher = _maps(5, 1, 4, 8, 8)
    student = F.interpolate(teacher, size=(4, 4), mode="bilinear", align_corners=False)
    assert float(on_logits("kd", student, teacher, 4.0)) == pytest.approx(0, abs=1e-6)
    assert resized(teacher, (8, 8)) is teacher


def test_dice_counts_the_classes_that_are_there_and_no_ignored_pixel() -> None:
    masks = torch.tensor([[[0, 0, 1, 255]]])
    right = torch.zeros(1, 3, 1, 4)
    right[0, 0, 0, :2] = right[0, 1, 0, 2] = 100.0
    assert float(dice(right, masks)) == pytest.approx(0, abs=1e-6)
    # All of class 0: of it 2 * 2 / (3 + 2) is right, of class 1 nothing.
    one = torch.zeros(1, 3, 1, 4)
    one[0, 0] = 100.0
    assert float(dice(one, masks)) == pytest.approx(1 - (0.8 + 0.0) / 2, abs=1e-6)


def test_pixels_are_weighed_by_class_and_by_how_wrong_they_are() -> None:
    logits, masks = _maps(6, 2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    masks[0, 0] = 255
    plain = F.cross_entropy(logits, masks, ignore_index=255)
    assert float(focal_of_pixels(logits, masks, 0.0)) == pytest.approx(float(plain), rel=1e-5)
    weights = torch.tensor([1.0, 2.0, 0.5])
    weighted = F.cross_entropy(logits, masks, weights, ignore_index=255)
    assert float(focal_of_pixels(logits, masks, 0.0, weights=weights)) == pytest.approx(
        float(weighted), rel=1e-5
    )
    even = torch.zeros(1, 2, 1, 1)  # p = 1/2: (1 - p)^2 of the cross entropy
    found = focal_of_pixels(even, torch.zeros(1, 1, 1, dtype=torch.int64), 2.0)
    assert float(found) == pytest.approx(math.log(2) / 4, rel=1e-5)


def test_structure_compares_how_alike_places_are() -> None:
    maps = _maps(7, 2, 6, 8, 8)
    turned = torch.linalg.qr(_maps(8, 6, 6))[0]  # another basis of channels: the same structure
    other = torch.einsum("oc,bchw->bohw", turned, maps)
    assert float(structure(maps, maps)) == 0
    # Small maps are compared place by place, so the basis cannot matter.
    assert float(structure(other, maps)) == pytest.approx(0, abs=1e-6)
    assert float(structure(_maps(9, 2, 4, 8, 8), maps)) > 0.05
    large = _maps(10, 1, 3, 64, 64)  # is pooled to 16 x 16
    assert float(structure(large, large)) == 0
