"""Feature points are found by running the network: the ends of its stages, and what pairs them."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.compress.distillation.features import align, captured, feature_points, find_pairs

IMAGE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.conv(x)), inplace=True)


class Tokens(nn.Module):
    """A ViT without the attention: patches of 8 px, `prefix` class tokens."""

    def __init__(self, layers: int = 8, prefix: int = 1, classes: int = 5) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 8, 8)
        self.start = nn.Parameter(torch.zeros(1, prefix, 12))
        self.blocks = nn.Sequential(*(nn.Linear(12, 12) for _ in range(layers)))
        self.head = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.blocks(torch.cat([self.start.expand(len(x), -1, -1), x], 1))[:, 0])


def cnn(width: int = 8, classes: int = 5) -> nn.Module:
    return nn.Sequential(OrderedDict(
        stem=nn.Conv2d(3, width, 3, 2, 1), one=Residual(width),
        down=nn.Conv2d(width, width, 3, 2, 1),
        two=Residual(width), again=Residual(width), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(),
        head=nn.Linear(width, classes),
    ))  # fmt: skip


def names(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(point.name, point.shape) for point in feature_points(model, IMAGE)]


def test_points_are_the_ends_of_stages_not_layers_inside_a_block() -> None:
    assert names(cnn()) == [("one", (8, 32, 32)), ("again", (8, 16, 16))]


def test_the_stages_of_a_resnet_are_found_and_its_mode_is_kept() -> None:
    model = tv.resnet18(num_classes=5).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert names(model) == [
        ("layer1", (64, 16, 16)), ("layer2", (128, 8, 8)), ("layer3", (256, 4, 4)),
        ("layer4", (512, 2, 2)),
    ]  # fmt: skip
    assert model.training and model.bn1.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("mobilenet_v3_small", "features.1 features.3 features.8 features"),
        ("densenet121", "features.denseblock1 features.denseblock2 features.denseblock3 features"),
        ("squeezenet1_1", "features.1 features.4 features.7 features"),
        ("swin_t", "features.1 features.3 features.5 permute"),
    ],
)
def test_stages_are_found_where_networks_are_built_otherwise(name: str, found: str) -> None:
    model = tv.get_model(name, weights=None, num_classes=5)
    points = feature_points(model, IMAGE)
    assert [p.name for p in points] == found.split()
    sides = [p.shape[1] for p in points]
    assert all(p.shape[1] == p.shape[2] for p in points) and sides == sorted(sides, reverse=True)


def test_tokens_become_a_map_without_their_class_tokens() -> None:
    model = Tokens(prefix=2)
    points = feature_points(model, IMAGE)
    assert [p.name for p in points] == ["blocks.1", "blocks.3", "blocks.5", "blocks"]
    assert {(p.shape, p.prefix, p.layout) for p in points} == {((12, 8, 8), 2, "tokens")}
    tokens = torch.arange(66.0)[None, :, None].expand(1, 66, 12)
    grid = points[0].as_map(tokens)
    assert grid.shape == (1, 12, 8, 8)
    assert float(grid[0, 0, 0, 0]) == 2.0 and float(grid[0, 5, 3, 4]) == 2 + 3 * 8 + 4


def test_channels_last_maps_are_turned() -> None:
    point = feature_points(tv.swin_t(num_classes=5), IMAGE)[0]
    assert point.layout == "channels-last" and point.shape == (96, 16, 16)
    assert point.as_map(torch.zeros(2, 16, 16, 96)).shape == (2, 96, 16, 16)


def test_points_of_equal_size_are_paired() -> None:
    pairs = find_pairs(tv.resnet18(num_classes=5), IMAGE, tv.resnet50(num_classes=5), IMAGE)
    assert [(p.student.name, p.teacher.name) for p in pairs] == [
        (f"layer{n}", f"layer{n}") for n in (1, 2, 3, 4)
    ]
    assert [p.teacher.shape[0] for p in pairs] == [256, 512, 1024, 2048]


def test_a_vit_and_a_cnn_are_paired_by_depth() -> None:
    pairs = find_pairs(cnn(), IMAGE, Tokens(), IMAGE)
    assert [(p.student.name, p.teacher.name) for p in pairs] == [
        ("one", "blocks.5"),
        ("again", "blocks"),
    ]
    pairs = find_pairs(Tokens(), IMAGE, cnn(), IMAGE)
    assert [(p.student.name, p.teacher.name) for p in pairs] == [
        ("blocks.5", "one"),
        ("blocks", "again"),
    ]


def test_a_teacher_of_other_inputs_is_paired_by_depth_where_no_sizes_are_equal() -> None:
    pairs = find_pairs(cnn(), IMAGE, cnn(), torch.zeros(1, 3, 40, 40))
    assert [(p.student.shape, p.teacher.shape) for p in pairs] == [
        ((8, 32, 32), (8, 20, 20)), ((8, 16, 16), (8, 10, 10)),
    ]  # fmt: skip


def test_named_features_are_taken_as_they_are_named() -> None:
    (pair,) = find_pairs(cnn(), IMAGE, Tokens(), IMAGE, ["two=blocks.0"])
    assert (pair.student.name, pair.teacher.name) == ("two", "blocks.0")
    assert (pair.student.shape, pair.teacher.shape) == ((8, 16, 16), (12, 8, 8))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("flat=two", "the student's flat gives [1, 8] and the teacher's two gives [1, 8, 16, 16]"),
        ("two=head", "the student's two gives [1, 8, 16, 16] and the teacher's head gives [1, 5]"),
        ("twoo=two", "the student has no module 'twoo'. Did you mean 'two'?"),
        ("two=layer9", "the teacher has no module 'layer9'"),
        ("two", "expected auto, or STUDENT=TEACHER"),
        ("two=", "expected auto, or STUDENT=TEACHER"),
    ],
)
def test_features_that_cannot_be_compared_are_named(given: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        find_pairs(cnn(), IMAGE, cnn(), IMAGE, [given])
    assert message in str(caught.value)


def test_a_network_without_maps_is_refused() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 5))
    with pytest.raises(UserError, match="No feature maps were found in the teacher"):
        find_pairs(cnn(), IMAGE, flat, IMAGE)


def test_alignment_averages_to_a_smaller_map_and_interpolates_to_a_larger() -> None:
    maps = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    assert align(maps, (1, 1)).item() == 4.0
    assert align(maps, (2, 2)) is maps
    assert align(maps, (2, 4))[0, 0, 0].tolist() == [1.0, 1.5, 2.5, 3.0]


def test_outputs_are_captured_from_the_network_itself_not_from_a_copy_of_it() -> None:
    model = cnn()
    with captured(model, ["two"]) as found:
        model(IMAGE)
        mine = found["two"]
        copy.deepcopy(model)(IMAGE + 1)
        assert found["two"] is mine and mine.requires_grad
    found.clear()
    model(IMAGE)
    assert not found
