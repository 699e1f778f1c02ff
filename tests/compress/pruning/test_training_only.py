"""Auxiliary heads, which run in training alone, follow the channels that are cut."""

import copy
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from vcompress.compress.pruning import probe as probing
from vcompress.compress.pruning import prune
from vcompress.compress.pruning.probe import difference


class Auxiliary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32)
        self.second = nn.Conv2d(32, 32, 3, 2, 1)
        self.drop = nn.Dropout(0.5)
        self.head, self.auxiliary = nn.Linear(32, 4), nn.Linear(32, 4)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        early = self.norm(self.first(images)).relu()
        logits: Tensor = self.head(self.drop(self.second(early).relu().mean((2, 3))))
        return (logits, self.auxiliary(early.mean((2, 3)))) if self.training else logits


def test_an_auxiliary_head_is_cut_with_the_layer_that_it_reads() -> None:
    torch.manual_seed(0)
    model = Auxiliary().train()
    original = copy.deepcopy(model)
    images = torch.randn(2, 3, 16, 16)
    report = prune(model, images[:1], channels=0.5)
    assert model.training and model.drop.training
    assert model.first.out_channels == model.auxiliary.in_features == 16
    assert model.head.in_features == model.second.out_channels == 16
    assert difference(original, report.groups, report.removed, images) < 1e-12
    logits, early = model(images)
    assert logits.shape == early.shape == (2, 4)


class Gained(nn.Conv2d):
    """A gain for each channel that no layer holds: it cannot be cut, which the probe finds."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.conv2d(images, self.weight * self.gain, self.bias, 2, 1)


def test_the_mode_is_looked_for_once_however_many_groups_are_probed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    modes, gaps = list[bool](), list[bool | None]()
    found, gap = probing.set_fullest, probing.difference

    def look(*given: Any) -> bool:
        modes.append(found(*given))
        return modes[-1]

    def differ(*given: Any) -> float:
        gaps.append(given[4])
        return gap(*given)

    monkeypatch.setattr(probing, "set_fullest", look)
    monkeypatch.setattr(probing, "difference", differ)
    model = Auxiliary()
    model.second = Gained(32, 32, 3, 2, 1)
    report = prune(model, torch.randn(1, 3, 16, 16), channels=0.8)
    assert [layer.name for layer in report.layers] == ["first"]
    assert "without some of its channels" in report.left_alone["second"]
    assert modes == [True] and gaps == [True, True, True]


def test_googlenet_with_its_auxiliary_heads_trains_after_pruning() -> None:
    torch.manual_seed(0)
    model = torchvision.models.googlenet(num_classes=5, init_weights=False, aux_logits=True).eval()
    images = torch.randn(2, 3, 64, 64)
    report = prune(model, images[:1], macs=0.6)
    assert report.achieved["macs"] <= 0.62
    made = model.train()(images)
    assert [tuple(made[i].shape) for i in range(3)] == [(2, 5)] * 3
    assert model.aux1.conv.conv.in_channels < 512 and model.aux2.conv.conv.in_channels < 528
    assert model.eval()(images).shape == (2, 5)
