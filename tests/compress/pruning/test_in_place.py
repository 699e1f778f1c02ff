"""Networks that change tensors in place are cut where that takes away the channels alone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.compress.pruning.probe import difference
from vcompress.compress.pruning.prune import prune


def clipped(x: Tensor) -> Tensor:
    x.clip_(0, 6)
    return x


def two_names(x: Tensor) -> Tensor:
    keep = x
    x += 0.5
    return F.leaky_relu_(x, 0.1) * keep


def half_of_the_channels(x: Tensor) -> Tensor:
    x[:, :16].mul_(3.0)
    return torch.relu_(x)


class Changing(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32)
        self.b, self.c, self.fc = nn.Conv2d(32, 32, 3, 1, 1), nn.Conv2d(32, 32, 3), nn.Linear(32, 5)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        x = self.change(self.na(self.a(x)))
        x = self.change(self.c(self.change(self.b(x) + x)))
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("change", [clipped, two_names])
def test_a_network_that_changes_in_place_is_cut_as_if_the_channels_were_zero(
    change: Callable[[Tensor], Tensor],
) -> None:
    torch.manual_seed(0)
    net, x = Changing(change).eval(), torch.randn(2, 3, 16, 16)
    before = copy.deepcopy(net)
    report = prune(net, x[:1], macs=0.6)
    assert report.achieved["macs"] <= 0.6
    assert difference(before, report.groups, report.removed, x) < 1e-7
    assert net(x).shape == (2, 5)


def test_a_network_that_changes_channels_by_their_number_is_refused() -> None:
    torch.manual_seed(0)
    net, x = Changing(half_of_the_channels).eval(), torch.randn(2, 3, 16, 16)
    with pytest.raises(UserError, match="a: without some of its channels the network computes"):
        prune(net, x[:1], macs=0.6)
