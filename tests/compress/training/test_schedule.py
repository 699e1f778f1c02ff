"""The learning rate over the steps."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from vcompress.bench.errors import UserError
from vcompress.compress.training.config import TrainConfig
from vcompress.compress.training.schedule import share_of_peak, within


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


def test_parts_in_a_row_are_one_schedule() -> None:
    whole = TrainConfig(epochs=10, warmup_epochs=2.0)
    expected = [share_of_peak(step, 7, whole) for step in range(70)]
    parts = [
        replace(whole, epochs=4, part=(0.0, 0.4)),
        replace(whole, epochs=3, part=(0.4, 0.7)),
        replace(whole, epochs=3, part=(0.7, 1.0)),
    ]
    found = [share_of_peak(step, 7, c) for c in parts for step in range(7 * c.epochs)]
    assert found == pytest.approx(expected, abs=1e-9)


def test_a_part_is_divided_among_the_steps_of_a_stage() -> None:
    config = TrainConfig(epochs=2, part=(0.5, 0.8))
    found = [within(config, before, 6).part for before in (0, 2, 4)]
    assert [list(part) for part in found] == [
        pytest.approx(part) for part in ([0.5, 0.6], [0.6, 0.7], [0.7, 0.8])
    ]
    # Without a part every step has a schedule of its own, as before.
    assert within(TrainConfig(epochs=2), 4, 6) == TrainConfig(epochs=2)


@pytest.mark.parametrize("part", [(0.5, 0.5), (-0.1, 1.0), (0.5, 1.1), (0.8, 0.2)])
def test_a_part_that_is_none_is_refused(part: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="two shares, the first below the second"):
        TrainConfig(part=part)
