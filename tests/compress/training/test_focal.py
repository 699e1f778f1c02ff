"""The focal loss against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from vcompress.compress.training.focal import focal

# Probabilities 0.7, 0.2, 0.1 and 0.25, 0.25, 0.5.
LOGITS = torch.tensor([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]]).log()


def test_what_is_right_already_counts_less() -> None:
    found = focal(LOGITS, torch.tensor([0, 1]), gamma=2)
    by_hand = (0.3**2 * -math.log(0.7) + 0.75**2 * -math.log(0.25)) / 2
    assert float(found) == pytest.approx(by_hand, rel=1e-6)


def test_soft_labels_share_it_out() -> None:
    soft = torch.tensor([[0.6, 0.4, 0.0], [0.0, 0.0, 1.0]])
    found = focal(LOGITS, soft, gamma=1)
    by_hand = (0.6 * 0.3 * -math.log(0.7) + 0.4 * 0.8 * -math.log(0.2) + 0.5 * math.log(2)) / 2
    assert float(found) == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_with_gamma_nought_it_is_cross_entropy(smoothing: float) -> None:
    labels = torch.tensor([2, 0])
    expected = F.cross_entropy(LOGITS, labels, label_smoothing=smoothing)
    assert torch.allclose(focal(LOGITS, labels, 0.0, smoothing), expected)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_a_certain_prediction_has_a_finite_gradient(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    focal(logits, torch.tensor([0]), gamma).backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
