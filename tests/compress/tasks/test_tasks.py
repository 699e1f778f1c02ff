"""The torch half of the tasks, each against what it must equal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vcompress.bench.tasks import open_dataset
from vcompress.compress.distillation import losses
from vcompress.compress.tasks import training_task
from vcompress.compress.tasks.classification import Classification
from vcompress.compress.tasks.multilabel import MultiLabel
from vcompress.compress.tasks.regression import Regression, fitted

rng = torch.Generator().manual_seed(0)


def logits(*shape: int) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=rng)


def test_a_data_set_names_its_task_and_fits_it() -> None:
    numbers = open_dataset("digits", task="regression")
    task = training_task(numbers)
    assert isinstance(task, Regression)
    train = numbers.targets[numbers.splits["train"]]
    assert task.centre[0] == pytest.approx(float(train.mean()), rel=1e-5)
    assert task.spread[0] == pytest.approx(float(train.std()), rel=1e-5)
    assert isinstance(training_task(open_dataset("digits")), Classification)
    assert isinstance(training_task(open_dataset("digits", task="multilabel")), MultiLabel)


def test_classification_is_cross_entropy_to_the_last_bit() -> None:
    task, outputs, labels = Classification(), logits(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    (found,) = task.loss(outputs, labels, 0.1).values()
    assert torch.equal(found, F.cross_entropy(outputs, labels, label_smoothing=0.1))
    assert torch.equal(task.soft(outputs, -outputs, 4.0), losses.kd(outputs, -outputs, 4.0))
    labels[0] = -1
    (partly,) = task.loss(outputs, labels, labelled=5 / 6).values()
    assert partly == pytest.approx(float(F.cross_entropy(outputs[1:], labels[1:])), rel=1e-6)


def test_binary_cross_entropy_leaves_images_without_labels_out() -> None:
    task, outputs = MultiLabel(), logits(4, 3)
    targets = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [-1, -1, -1]])
    (found,) = task.loss(outputs, targets, labelled=0.75).values()
    expected = F.binary_cross_entropy_with_logits(outputs[:3], targets[:3], reduction="sum") / 3
    assert found == pytest.approx(float(expected), rel=1e-6)


def test_distillation_of_labels_is_the_divergence_of_each_and_least_at_the_teacher() -> None:
    task, student, teacher = MultiLabel(), logits(5, 3), logits(5, 3)
    p, q = torch.sigmoid(teacher / 2).double(), torch.sigmoid(student / 2).double()
    each = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert task.soft(student, teacher, 2.0) == pytest.approx(
        float(4 * each.sum(1).mean()), rel=1e-5
    )
    assert task.soft(teacher, teacher, 2.0) == 0


def test_two_teachers_of_labels_are_averaged_in_probability() -> None:
    task, outputs = MultiLabel(), logits(2, 5, 3)
    shares = torch.tensor([0.25, 0.75])[:, None].expand(2, 5)
    mixed = task.mixture(outputs, shares, 2.0)
    expected = 0.25 * torch.sigmoid(outputs[0] / 2) + 0.75 * torch.sigmoid(outputs[1] / 2)
    torch.testing.assert_close(torch.sigmoid(mixed / 2), expected)


def test_two_teachers_of_classes_are_averaged_in_probability() -> None:
    task, outputs = Classification(), logits(2, 5, 3)
    shares = torch.tensor([0.25, 0.75])[:, None].expand(2, 5)
    mixed = task.mixture(outputs, shares, 2.0)
    expected = 0.25 * (outputs[0] / 2).softmax(1) + 0.75 * (outputs[1] / 2).softmax(1)
    torch.testing.assert_close((mixed / 2).softmax(1), expected)


def test_the_loss_of_numbers_does_not_depend_on_their_unit() -> None:
    metres = torch.tensor([[1.2], [1.8], [1.5]])
    outputs = metres + 0.1
    small = fitted(metres.numpy()).loss(outputs, metres)["smooth_l1"]
    large = fitted(1000 * metres.numpy()).loss(1000 * outputs, 1000 * metres)["smooth_l1"]
    assert float(small) == pytest.approx(float(large), rel=1e-4)
    unknown = metres.clone()
    unknown[0] = float("nan")
    partly = fitted(metres.numpy()).loss(outputs, unknown, labelled=2 / 3)["smooth_l1"]
    assert float(partly) == pytest.approx(float(small), rel=1e-5)


def test_a_fresh_head_starts_at_the_mean_with_the_spread_of_the_targets() -> None:
    targets = np.random.default_rng(0).normal((170, 0.5), (10, 0.01), (1000, 2)).astype(np.float32)
    torch.manual_seed(0)
    head = nn.Linear(64, 2)
    fitted(targets).start(head)
    found = head(torch.randn(1000, 64, generator=rng)).detach()
    assert found.mean(0).tolist() == pytest.approx([170, 0.5], rel=0.1)
    assert found[:, 0].std() == pytest.approx(10 / 3**0.5, rel=0.4)
    assert found[:, 1].std() == pytest.approx(0.01 / 3**0.5, rel=0.4)


def test_harm_is_above_nought_exactly_where_an_image_is_wrong() -> None:
    outputs = torch.tensor([[2.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    labels = torch.tensor([1, 0, 1])
    assert (Classification().harm(outputs, labels) > 0).tolist() == [True, False, True]
    said = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    wanted = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert (MultiLabel().harm(said, wanted) > 0).tolist() == [False, True]
