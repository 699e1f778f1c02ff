"""Masks and norms that look at all channels of a map: the channels are pruned all the same."""

import copy

import pytest
import torch
from torch import Tensor, nn

from vcompress.compress.pruning import prune
from vcompress.compress.pruning.channel_statistics import Ones
from vcompress.compress.pruning.probe import difference


class Masked(nn.Module):
    """A stream of 32 channels, gated by a mask of one channel and added to what it was."""

    def __init__(self, mask: nn.Module, pooled: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        self.body = nn.Conv2d(32, 32, 3, 1, 1)
        self.mask, self.pooled = mask, pooled
        self.head = nn.Linear(32, 4)

    def forward(self, images: Tensor) -> Tensor:
        stream = self.stem(images).relu()
        maps = self.body(stream).relu()
        seen = maps
        if self.pooled:  # Woo et al., CBAM, ECCV 2018
            seen = torch.cat([maps.mean(1, keepdim=True), maps.amax(1, keepdim=True)], dim=1)
        return self.head((maps * self.mask(seen).sigmoid() + stream).mean((2, 3)))


class OwnNorm(nn.Module):
    """A layer norm over the channels of a map, written by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)
        self.bias = nn.Parameter(torch.randn(width))

    def forward(self, images: Tensor) -> Tensor:
        centred = images - images.mean(1, keepdim=True)
        normal = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        return normal * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


def masked_by_pooling() -> nn.Module:
    return Masked(nn.Conv2d(2, 1, 7, padding=3), pooled=True)


def masked_by_a_convolution() -> nn.Module:
    return Masked(nn.Sequential(nn.Conv2d(32, 1, 1), nn.BatchNorm2d(1)), pooled=False)


def normed_by_hand() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1), OwnNorm(32), nn.ReLU(), nn.Conv2d(32, 32, 3), OwnNorm(32),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip


@pytest.mark.parametrize("make", [masked_by_pooling, masked_by_a_convolution, normed_by_hand])
def test_a_stream_under_a_mask_or_a_norm_over_channels_is_pruned(make: object) -> None:
    torch.manual_seed(0)
    model = make().eval()  # type: ignore[operator]
    original = copy.deepcopy(model)
    images = torch.randn(2, 3, 16, 16)
    report = prune(model, images[:1], macs=0.5)
    assert 0.2 < report.achieved["macs"] <= 0.51
    assert {w.name: w.after for w in report.layers if w.before == 32} != {}
    assert min(w.after / w.before for w in report.layers) <= 0.75
    assert difference(original, report.groups, report.removed, images) < 1e-12
    assert model(images).shape == (2, 4)


def test_a_mask_keeps_its_channel() -> None:
    torch.manual_seed(0)
    model = masked_by_a_convolution().eval()
    prune(model, torch.randn(1, 3, 16, 16), channels=0.3)
    assert model.mask[0].weight.shape[:2] == (1, 8)  # type: ignore[index, union-attr]
    assert model.mask[1].num_features == 1  # type: ignore[index, union-attr]


@pytest.mark.parametrize(
    ("statistic", "over"),
    [
        (lambda x: x.mean(1), True),
        (lambda x: x.mean(-3, keepdim=True), True),
        (lambda x: x.amax(dim=1), True),
        (lambda x: x.max(1).values, True),
        (lambda x: torch.var(x, 1), True),
        (lambda x: torch.std_mean(x, dim=1)[0], True),
        (lambda x: x.mean((2, 3)), False),
        (lambda x: x.mean((1, 2)), False),
        (lambda x: x.sum(1), False),
        (lambda x: x.flatten(2).mean(1), False),
        (lambda x: x.mean(), False),
    ],
)
def test_statistics_over_the_channels_of_a_map_are_told_from_others(
    statistic: object, over: bool
) -> None:
    maps = torch.randn(2, 8, 3, 3)
    plain = statistic(maps)  # type: ignore[operator]
    with Ones():
        drawn = statistic(maps)  # type: ignore[operator]
    assert drawn.shape == plain.shape
    assert bool((drawn == 1).all()) == over
    assert over or torch.equal(drawn, plain)
