"""The learning rate over the steps."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from vcompress.compress.schedule import share_of_peak
from vcompress.compress.stage import TrainConfig


def test_the_rate_warms_up_and_falls_to_zero_on_a_cosine() -> None:
    config = TrainConfig(epochs=10, warmup_epochs=2)
    shares = [share_of_peak(step, 5, config) for step in range(50)]
    assert shares[:3] == pytest.approx([1 / 11, 2 / 11, 3 / 11])
    assert shares[10] == 1.0
    assert shares[30] == pytest.approx(0.5)
    assert all(a < b for a, b in pairwise(shares[:11]))
    assert all(a > b for a, b in pairwise(shares[10:]))
    assert share_of_peak(50, 5, config) == pytest.approx(0.0, abs=1e-12)


def test_one_cycle_is_that_of_torch() -> None:
    config = TrainConfig(epochs=10, warmup_epochs=0, schedule="onecycle")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=50)
    for step in range(50):
        expected = theirs.get_last_lr()[0]
        assert share_of_peak(step, 5, config) == pytest.approx(expected, abs=1e-9), step
        optimizer.step()
        if step < 49:
            theirs.step()


def test_one_cycle_rises_over_a_longer_warm_up_and_is_defined_for_one_step() -> None:
    config = TrainConfig(epochs=10, warmup_epochs=6, schedule="onecycle")
    shares = [share_of_peak(step, 5, config) for step in range(50)]
    assert shares.index(max(shares)) == 30 and max(shares) == 1.0
    assert 0 < share_of_peak(0, 1, TrainConfig(epochs=1, schedule="onecycle")) <= 1
