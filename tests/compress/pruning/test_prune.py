"""What `prune` promises, on real architectures with random weights and small images."""

import copy
import math
from typing import Any

import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.compress.models.cost import count_macs, count_parameters
from vcompress.compress.pruning import prune
from vcompress.compress.pruning.probe import difference
from vcompress.export.folding import folded

FAST = ("resnet18", "squeezenet1_1")
SLOW = (
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "resnext50_32x4d",
    "vgg11_bn",
    "mobilenet_v2",
    "efficientnet_b0",
    "densenet121",
    "mnasnet0_5",
    "regnet_y_400mf",
    "convnext_tiny",
    "swin_t",
    "swin_v2_t",
    "googlenet",
    "alexnet",
)


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    # As vcompress builds it: without the heads that are only for training.
    kwargs = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    return tv.get_model(name, weights=None, num_classes=10, **kwargs)


def mobile() -> nn.Module:
    """Depthwise convolutions, residuals, squeeze and excitation; runs in milliseconds."""
    from torchvision.models.mobilenetv3 import InvertedResidualConfig as Block

    torch.manual_seed(0)
    blocks = [
        Block(16, 3, 32, 24, True, "RE", 2, 1, 1),
        Block(24, 3, 64, 24, True, "HS", 1, 1, 1),
        Block(24, 5, 64, 32, False, "HS", 1, 1, 1),
    ]
    return tv.MobileNetV3(blocks, last_channel=64, num_classes=10)


@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_half_the_macs_remain_and_the_rest_computes_the_same(name: str) -> None:
    model = make(name)
    original = copy.deepcopy(model)
    example = torch.randn(1, 3, 64, 64)
    report = prune(model, example, macs=0.5)
    share = count_macs(model, example) / count_macs(original, example)
    assert share == pytest.approx(report.achieved["macs"])
    assert 0.49 <= share <= 0.505
    assert difference(original, report.groups, report.removed, example) < 1e-9
    assert model(example.repeat(2, 1, 1, 1)).shape == (2, 10)


def test_a_vision_transformer_loses_stream_heads_and_mlps() -> None:
    torch.manual_seed(0)
    model = tv.VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=4,
        hidden_dim=64,
        mlp_dim=128,
        num_classes=10,
    )
    original = copy.deepcopy(model)
    example = torch.randn(1, 3, 32, 32)
    report = prune(model, example, macs=0.5)
    assert 0.48 <= count_macs(model, example) / count_macs(original, example) <= 0.505
    assert difference(original, report.groups, report.removed, example) < 1e-9
    attention = model.encoder.layers[0].self_attention
    assert attention.embed_dim == model.hidden_dim < 64
    assert attention.head_dim * 4 == attention.embed_dim
    assert model.encoder.layers[0].mlp[0].out_features < 128
    # each attention chose its own channels: the stream's and the heads' masks differ
    masks = [
        report.removed[f"encoder.layers.encoder_layer_{i}.self_attention.heads"] for i in (0, 1)
    ]
    assert not torch.equal(masks[0], masks[1])


def test_a_prediction_that_padding_puts_far_off_is_mended_by_what_the_cut_costs() -> None:
    """Windows of 4 on maps of 3 x 3 are padded, so most of the work is not in the prediction."""
    torch.manual_seed(0)
    for share in (0.5, 0.7):
        model = tv.SwinTransformer(
            patch_size=[4, 4], embed_dim=48, depths=[2, 2], num_heads=[3, 6],
            window_size=[4, 4], num_classes=10,
        )  # fmt: skip
        report = prune(model, torch.randn(1, 3, 20, 20), macs=share, round_to=4)
        assert share - 0.05 <= report.achieved["macs"] <= share + 0.005


def test_swin_is_pruned_in_its_streams_and_mlps() -> None:
    torch.manual_seed(0)
    model = tv.SwinTransformer(
        patch_size=[4, 4],
        embed_dim=24,
        depths=[2, 2],
        num_heads=[3, 6],
        window_size=[4, 4],
        num_classes=10,
    )
    original = copy.deepcopy(model)
    example = torch.randn(1, 3, 32, 32)
    report = prune(model, example, macs=0.5, round_to=4)
    assert 0.45 <= report.achieved["macs"] <= 0.505
    assert difference(original, report.groups, report.removed, example) < 1e-9
    assert all("output" in why for why in report.left_alone.values())


def test_depthwise_layers_and_gates_follow_their_blocks() -> None:
    model = mobile()
    original = copy.deepcopy(model)
    example = torch.randn(1, 3, 32, 32)
    report = prune(model, example, macs=0.5)
    assert 0.48 <= report.achieved["macs"] <= 0.505
    assert difference(original, report.groups, report.removed, example) < 1e-9


def test_shuffled_channels_stay_and_the_others_go() -> None:
    torch.manual_seed(0)
    model = tv.ShuffleNetV2([2, 1, 1], [16, 32, 64, 64, 64], num_classes=10)
    original = copy.deepcopy(model)
    example = torch.randn(1, 3, 32, 32)
    report = prune(model, example, macs=0.8)
    assert report.achieved["macs"] == pytest.approx(0.8, abs=0.02)
    assert difference(original, report.groups, report.removed, example) < 1e-9
    assert "shuffled" in report.left_alone["stage2.0.branch1.2"]


def test_a_densenet_prunes_each_layer_behind_its_concat() -> None:
    torch.manual_seed(0)
    model = tv.DenseNet(
        growth_rate=16, block_config=(2, 2), num_init_features=16, bn_size=2, num_classes=10
    )
    original = copy.deepcopy(model)
    example = torch.randn(1, 3, 32, 32)
    report = prune(model, example, macs=0.5)
    assert 0.45 <= report.achieved["macs"] <= 0.505
    assert difference(original, report.groups, report.removed, example) < 1e-9
    assert {"features.denseblock1.denselayer1.conv2", "features.denseblock1.denselayer2.conv2"} <= {
        layer.name for layer in report.layers
    }


@pytest.mark.parametrize("budget", ["params", "channels"])
def test_other_budgets_are_met_too(budget: str) -> None:
    model = make("resnet18")
    before = count_parameters(model)
    report = prune(model, torch.randn(1, 3, 32, 32), **{budget: 0.5})  # type: ignore[arg-type]
    assert report.achieved[budget] == pytest.approx(0.5, abs=0.01)
    assert report.achieved["params"] == count_parameters(model) / before


def test_at_32_px_a_quarter_of_the_macs_leaves_a_quarter_of_the_parameters() -> None:
    model = make("resnet18")
    report = prune(model, torch.randn(1, 3, 32, 32), macs=0.25)
    assert report.achieved["macs"] == pytest.approx(0.25, abs=0.005)
    assert count_parameters(model) < 2_900_000  # so that int8 weights fit in 2.9 MB


@pytest.mark.parametrize("scope", ["local", "kind", "global"])
def test_each_scope_meets_the_budget(scope: Any) -> None:
    model = make("resnet18")
    report = prune(model, torch.randn(1, 3, 32, 32), macs=0.5, scope=scope)
    assert report.achieved["macs"] == pytest.approx(0.5, abs=0.01)


def test_widths_are_multiples_of_round_to_and_capped_after_the_step() -> None:
    model = make("resnet18")
    report = prune(
        model,
        torch.randn(1, 3, 32, 32),
        macs=0.4,
        scope="global",
        round_to=16,
        max_channel_ratio=0.5,
    )
    for layer in report.layers:
        assert layer.after % 16 == 0
        assert layer.after >= layer.before / 2


def test_groups_of_a_convolution_stay_equal() -> None:
    model = tv.ResNet(
        tv.resnet.Bottleneck, [1, 1, 1, 1], num_classes=10, groups=32, width_per_group=4
    )
    prune(model, torch.randn(1, 3, 32, 32), macs=0.4)
    grouped = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == 32]
    assert any(m.in_channels < 128 for m in grouped)
    for conv in grouped:
        assert conv.in_channels % 32 == 0 and conv.out_channels % 32 == 0


@pytest.mark.parametrize(("width", "factor", "kept"), [(16, 2, 8), (16, 3, 8)])
def test_what_a_depthwise_layer_makes_of_a_channel_goes_with_it(
    width: int, factor: int, kept: int
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(width, factor * width, 3, 1, 1, groups=width), nn.BatchNorm2d(factor * width),
        nn.ReLU(), nn.Conv2d(factor * width, 32, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 10),
    ).eval()  # fmt: skip
    original = copy.deepcopy(model)
    images = torch.randn(2, 3, 16, 16)
    report = prune(model, images[:1], macs=0.5, protect=("5",))
    made = model[2]
    assert isinstance(made, nn.Conv2d)
    assert (made.in_channels, made.groups, made.out_channels) == (kept, kept, factor * kept)
    assert made.weight.shape == (factor * kept, 1, 3, 3)
    assert model[3].num_features == factor * kept
    assert count_macs(model, images[:1]) == report.macs[1]
    assert difference(original, report.groups, report.removed, images) < 1e-12


def test_a_depthwise_layer_on_the_image_loses_the_same_of_each_colour() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 48, 3, 2, 1, groups=3), nn.ReLU(), nn.Conv2d(48, 32, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ).eval()  # fmt: skip
    original = copy.deepcopy(model)
    images = torch.randn(2, 3, 16, 16)
    report = prune(model, images[:1], macs=0.5, protect=("2",))
    first = model[0]
    assert isinstance(first, nn.Conv2d)
    assert (first.in_channels, first.groups, first.out_channels) == (3, 3, 24)
    assert difference(original, report.groups, report.removed, images) < 1e-12


def test_protected_layers_keep_their_width() -> None:
    model = make("resnet18")
    report = prune(
        model, torch.randn(1, 3, 32, 32), macs=0.6, protect=("layer1.*.conv1", "layer4*")
    )
    assert model.layer1[0].conv1.out_channels == 64
    assert model.layer4[1].conv2.out_channels == 512
    assert report.left_alone["layer1.0.conv1"] == "protected"


def test_a_path_protects_all_that_is_inside_and_one_that_is_not_there_is_refused() -> None:
    model = make("resnet18")
    prune(model, torch.randn(1, 3, 32, 32), macs=0.6, protect=("layer4",))
    widths = {m.out_channels for m in model.layer4.modules() if isinstance(m, nn.Conv2d)}
    assert widths == {512}
    with pytest.raises(UserError, match=r"protect: 'layr4' is no module.*Did you mean 'layer4'"):
        prune(model, torch.randn(1, 3, 32, 32), macs=0.6, protect=("layr4",))


def test_flags_modes_gradients_and_memory_format_are_kept() -> None:
    model = make("resnet18").to(memory_format=torch.channels_last).train()
    model.layer1.eval()
    model.conv1.weight.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone()
    prune(model, torch.randn(1, 3, 32, 32), macs=0.5)
    assert not model.conv1.weight.requires_grad and model.bn1.weight.requires_grad
    assert model.training and not model.layer1.training and model.layer2[0].bn1.training
    weight = model.layer2[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert weight.grad is not None and torch.equal(weight.grad, weight.detach())


def test_a_frozen_model_is_pruned_and_stays_frozen() -> None:
    model = make("resnet18").requires_grad_(False)
    report = prune(model, torch.randn(1, 3, 32, 32), macs=0.5)
    assert report.achieved["macs"] == pytest.approx(0.5, abs=0.01)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_pruned_model_can_be_pruned_again() -> None:
    model = mobile()
    example = torch.randn(1, 3, 32, 32)
    before = count_macs(model, example)
    for _ in range(2):
        prune(model, example, macs=math.sqrt(0.5))
    assert count_macs(model, example) / before == pytest.approx(0.5, abs=0.01)


def test_the_result_is_the_same_every_time() -> None:
    results = []
    for _ in range(2):
        model = mobile()
        prune(model, torch.randn(1, 3, 32, 32), macs=0.5)
        results.append(model.state_dict())
    assert all(
        torch.equal(one, other) for one, other in zip(*(r.values() for r in results), strict=True)
    )


def test_a_budget_that_cannot_be_met_says_how_low_one_can_go_and_changes_nothing() -> None:
    model = make("resnet18")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=r"macs = 0.01 cannot be met.* at least 0\.\d+ of the macs"):
        prune(model, torch.randn(1, 3, 32, 32), macs=0.01, max_channel_ratio=0.7)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_budget_that_cannot_be_met_names_the_layers_that_keep_their_width() -> None:
    model = make("resnet18")
    with pytest.raises(UserError) as caught:
        prune(
            model, torch.randn(1, 3, 32, 32), macs=0.1, protect=("layer*.conv1", "layer2.0.conv2")
        )
    said = str(caught.value)
    assert "Left at their width: fc (it is an output of the network)" in said
    assert "layer2.0.conv2, layer1.0.conv1, layer1.1.conv1 and 6 more (protected)." in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one"),
        ({"macs": 0.5, "params": 0.5}, "exactly one"),
        ({"macs": 1.5}, "between 0 and 1"),
        ({"macs": 0.5, "max_channel_ratio": 1.0}, "without channels"),
        ({"macs": 0.5, "round_to": 0}, "1 or more"),
        ({"macs": 0.5, "scope": "locale"}, "Did you mean 'local'"),
        ({"macs": 0.5, "importance": "l3"}, "expected one of"),
        ({"macs": 0.5, "importance": "taylor"}, "needs batches"),
        ({"macs": 0.5, "round_to": 4096}, "Nothing in this network can be pruned"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prune(make("resnet18"), torch.randn(1, 3, 32, 32), **options)


def test_weight_norm_is_folded_and_its_channels_go() -> None:
    from torch.nn.utils import weight_norm as old_weight_norm
    from torch.nn.utils.parametrizations import weight_norm

    for wrap in (weight_norm, old_weight_norm):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 16, 1), wrap(nn.Conv2d(16, 16, 1)), nn.Conv2d(16, 2, 1))
        original = folded(model)
        images = torch.randn(2, 3, 4, 4)
        report = prune(model, images[:1], channels=0.5)
        assert model[1].weight.shape == (8, 8, 1, 1)
        assert set(dict(model[1].named_parameters())) == {"weight", "bias"}
        assert difference(original, report.groups, report.removed, images) < 1e-12


class OwnWeightNorm(nn.Conv2d):
    """A hand-written gain for each channel, which nothing folds."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 1)
        self.weight_g = nn.Parameter(torch.rand(channels, 1, 1, 1) + 0.5)

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.conv2d(images, self.weight * self.weight_g, self.bias)


def test_a_hand_written_weight_norm_keeps_its_width_and_the_others_are_cut() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.ReLU(), OwnWeightNorm(16), nn.ReLU(), nn.Conv2d(16, 16, 1),
        nn.ReLU(), nn.Conv2d(16, 2, 1),
    )  # fmt: skip
    original = copy.deepcopy(model)
    images = torch.randn(2, 3, 4, 4)
    report = prune(model, images[:1], channels=0.8, round_to=1)
    assert [w.name for w in report.layers] == ["0", "4"]
    assert model[2].weight.shape == (16, model[0].out_channels, 1, 1)
    assert model[0].out_channels < 16 and model[4].out_channels < 16
    assert "without some of its channels" in report.left_alone["2"]
    assert difference(original, report.groups, report.removed, images) < 1e-12


def test_a_network_with_several_inputs_is_refused() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 1)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.conv(left) + self.conv(right)

    with pytest.raises(UserError, match="one image tensor as input"):
        prune(Two(), torch.randn(1, 3, 4, 4), macs=0.5)


def test_a_branch_on_the_data_is_pruned_on_the_side_that_the_example_takes() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 32, 1)
            self.head = nn.Conv2d(32, 2, 1)

        def forward(self, images: Tensor) -> Tensor:
            features = self.stem(images)
            if images.mean() > 0:
                features = features.relu()
            return self.head(features)

    model = Branching()
    report = prune(model, torch.rand(1, 3, 4, 4), macs=0.5)
    assert report.achieved["macs"] == pytest.approx(0.5)
    assert model(-torch.rand(1, 3, 4, 4)).shape == (1, 2, 4, 4)


def test_a_layer_that_the_graph_gets_wrong_is_left_alone_and_named() -> None:
    class Flipped(nn.Module):
        """Channels change places where the graph sees an operation on single elements."""

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 32, 1)
            self.second = nn.Conv2d(32, 32, 1)
            self.head = nn.Conv2d(32, 2, 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.second(self.first(images).flip(1)).relu())

    model = Flipped()
    report = prune(model, torch.randn(1, 3, 4, 4), macs=0.6)
    assert "computes something else" in report.left_alone["first"]
    assert model.first.out_channels == 32 and model.second.out_channels < 32


def test_a_frozen_batch_norm_follows_its_layer() -> None:
    from torchvision.ops import FrozenBatchNorm2d

    torch.manual_seed(0)
    model = tv.resnet18(weights=None, num_classes=10, norm_layer=FrozenBatchNorm2d)
    original = copy.deepcopy(model)
    example = torch.randn(1, 3, 32, 32)
    report = prune(model, example, macs=0.5)
    assert difference(original, report.groups, report.removed, example) < 1e-9
    assert model.bn1.weight.shape == (model.conv1.out_channels,)


class Ghost(nn.Module):
    """Cheap features beside those that they are made of; a slice keeps the first `most`."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.stem = nn.Conv2d(3, 32, 1)
        self.cheap = nn.Conv2d(32, 32, 1, groups=32)
        self.head = nn.Conv2d(most, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        stem = self.stem(images)
        return self.head(torch.cat([stem, self.cheap(stem)], 1)[:, : self.most])


def test_channels_that_meet_again_in_a_concat_go_together() -> None:
    model = Ghost(64)
    original = copy.deepcopy(model)
    example = torch.randn(1, 3, 4, 4)
    report = prune(model, example, macs=0.5)
    assert report.achieved["macs"] == pytest.approx(0.5)
    assert difference(original, report.groups, report.removed, example) < 1e-9
    assert model.stem.out_channels == model.cheap.out_channels == model.head.in_channels // 2 == 16


def test_a_slice_with_a_fixed_end_is_found_out_and_its_layers_are_named() -> None:
    """Of fewer channels it would take others: nothing fails, but the network is another one."""
    with pytest.raises(UserError, match=r"Nothing .* can be pruned\. .*stem: .*something else"):
        prune(Ghost(48), torch.randn(1, 3, 4, 4), macs=0.5)


class FixedChannels(nn.Module):
    """Clears three channels by their numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 32, 3)
        self.cleared = nn.Conv2d(32, 32, 3)
        self.head = nn.Conv2d(32, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.cleared(self.before(images).relu())
        maps[:, 2:5] = 0.0
        return self.head(maps).mean((2, 3))


def test_an_operation_on_channels_by_their_numbers_is_found_out_among_other_layers() -> None:
    torch.manual_seed(0)
    model = FixedChannels()
    report = prune(model, torch.randn(1, 3, 8, 8), channels=0.8)
    assert [w.name for w in report.layers] == ["before"]
    assert "computes something else" in report.left_alone["cleared"]


class Joined(nn.Module):
    """Two layers whose channels are joined before a depthwise convolution; the second's are small,
    so all of them are ranked last."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Conv2d(3, 48, 3, padding=1), nn.Conv2d(3, 16, 3, padding=1)
        self.each = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.head = nn.Conv2d(64, 5, 1)
        with torch.no_grad():
            self.small.weight *= 1e-3

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.large(x), self.small(x)], 1)
        found: Tensor = self.head(self.each(joined))
        return found.mean((2, 3))


def test_no_layer_of_several_that_are_joined_loses_all_of_its_channels() -> None:
    torch.manual_seed(0)
    model, example = Joined().eval(), torch.randn(1, 3, 16, 16)
    whole = copy.deepcopy(model)
    report = prune(model, example, macs=0.4, importance="l2", round_to=1)
    assert report.achieved["macs"] <= 0.41
    assert model.small.out_channels >= 1
    assert model.large.out_channels + model.small.out_channels == model.each.groups
    assert difference(whole, report.groups, report.removed, example) < 1e-12
