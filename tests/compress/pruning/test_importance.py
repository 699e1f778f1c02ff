"""Each criterion on a network small enough to know the answer."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.compress.pruning.importance import scores
from vcompress.compress.pruning.trace import trace


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 2, 1, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([1.0, -2.0, 3.0, 4.0]).view(4, 1, 1, 1))
            self.norm.weight.copy_(torch.tensor([0.4, 0.3, 0.2, 0.1]))
            self.second.weight.copy_(
                torch.tensor([[1.0, 0, 1, 0], [1.0, 0, 0, 2]]).view(2, 4, 1, 1)
            )

    def forward(self, images: Tensor) -> Tensor:
        return self.second(self.norm(self.first(images))).mean((2, 3))


def score(importance: Any, **options: Any) -> list[float]:
    model = Chain()
    groups = trace(model, torch.randn(1, 1, 2, 2)).groups
    return scores(model, groups, importance, **options)["first"].tolist()


def test_magnitudes_are_averaged_over_the_layers_of_a_group() -> None:
    # three layers: |first| + |gamma| + sum of |second's column|
    assert score("l1") == pytest.approx(
        [(1 + 0.4 + 2) / 3, (2 + 0.3 + 0) / 3, (3 + 0.2 + 1) / 3, (4 + 0.1 + 2) / 3]
    )
    assert score("l2") == pytest.approx(
        [(1 + 0.16 + 2) / 3, (4 + 0.09) / 3, (9 + 0.04 + 1) / 3, (16 + 0.01 + 4) / 3]
    )


def test_batch_norm_scales_rank_alone() -> None:
    assert score("bn") == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_groups_without_a_norm_fall_back_to_their_weights_under_bn() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1))
        model[1].weight.copy_(torch.tensor([[1.0, 1.0]]).view(1, 2, 1, 1))
    groups = trace(model, torch.randn(1, 1, 2, 2)).groups
    assert scores(model, groups, "bn")["0"].tolist() == pytest.approx([1.0, 2.0])


def test_lamp_divides_by_everything_that_is_no_smaller() -> None:
    l2 = score("l2")
    lamp = score("lamp")
    ascending = sorted(l2)
    for value, got in zip(l2, lamp, strict=True):
        assert got == pytest.approx(value / sum(v for v in ascending if v >= value))
    assert max(lamp) == pytest.approx(1.0)


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(4, 1, 2, 2, generator=generator),
            torch.randint(0, 2, (4,), generator=generator),
        )
        for _ in range(2)
    ]


@pytest.mark.parametrize("importance", ["taylor", "hessian"])
def test_a_channel_that_nobody_reads_has_no_effect_on_the_loss(importance: Any) -> None:
    values = score(importance, batches=batches())
    assert values[1] == pytest.approx(0.0, abs=1e-12)
    assert min(values[2], values[3]) > 1e-8


def test_taylor_is_the_squared_first_order_change_of_the_given_loss() -> None:
    def loss(logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return logits[:, 0].sum()

    values = score(
        "taylor", batches=[(torch.ones(1, 1, 1, 1), torch.zeros(1, dtype=torch.long))], loss=loss
    )
    # in eval mode with fresh statistics: logit 0 = sum over channels of second * gamma * first,
    # each factor's weight times gradient is that product, in each of the three layers
    products = [1 * 0.4 * 1, 0.0, 3 * 0.2 * 1, 0.0]
    assert values == pytest.approx([p**2 for p in products], rel=1e-4, abs=1e-9)


def test_random_scores_follow_the_seed() -> None:
    assert score("random", seed=1) == score("random", seed=1) != score("random", seed=2)


def test_gradients_leave_nothing_behind_and_work_on_a_frozen_model() -> None:
    model = Chain().requires_grad_(False).train()
    groups = trace(model, torch.randn(1, 1, 2, 2)).groups
    found = scores(model, groups, "taylor", batches=batches())
    assert float(found["first"].sum()) > 0
    assert model.training and all(p.grad is None for p in model.parameters())
    assert int(model.norm.num_batches_tracked) == 0


def test_no_batches_at_all_is_an_error() -> None:
    with pytest.raises(UserError, match="no batch of images"):
        score("hessian", batches=[])
