"""Post-training repairs: equalisation, bias correction, AdaRound."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from vcompress.compress import quantization as q
from vcompress.compress.quantization.adaround import adaround
from vcompress.compress.quantization.bias_correction import correct_bias
from vcompress.compress.quantization.equalize import equalize
from vcompress.compress.quantization.ptq import Scheme
from vcompress.compress.quantization.repairs import Repairs, repaired


def images(count: int = 32, size: int = 32, seed: int = 1) -> Tensor:
    """Neighbours are alike, as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 5, 5, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=size, mode="bicubic")
    return 2 * smooth + 0.2 * torch.randn(count, 3, size, size, generator=generator)


def logits(model: nn.Module, x: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(x)


def sqnr_db(a: Tensor, b: Tensor) -> float:
    return float(10 * torch.log10(a.square().sum() / (a - b).square().sum()))


def settled(model: nn.Module) -> nn.Module:
    """Batch statistics as training leaves them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    model.train()
    with torch.no_grad():
        for seed in range(3):
            model(images(64, seed=10 + seed))
    return model.eval()


def mobilenet() -> nn.Module:
    """MobileNetV2 with its blocks, fewer of them: random weights magnify errors with depth."""
    torch.manual_seed(0)
    setting = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]]
    model = mobilenet_v2(num_classes=10, inverted_residual_setting=setting)
    model.features[-1] = nn.Identity()
    model.classifier = nn.Linear(32, 10)
    return settled(model)


@pytest.fixture(scope="module")
def unbalanced() -> nn.Module:
    """MobileNetV2 whose expanded channels differ by up to 500 in range, and whose depthwise weights
    make up for it: training leaves such networks, and one step for a tensor fails on them."""
    model = mobilenet()
    for block in model.features[2:-1]:
        (_, expand, _), (depthwise, _, _) = block.conv[0], block.conv[1]
        with torch.no_grad():
            factor = torch.exp(-torch.rand(expand.num_features) * 6.2)
            factor[0] = 1.0
            # ReLU6 lets the factor through where a channel stays below 6.
            expand.weight.mul_(factor * 0.3)
            expand.bias.mul_(factor * 0.3)
            depthwise.weight.div_((factor * 0.3).view(-1, 1, 1, 1))
    return model


def quantised(model: nn.Module, **options: object) -> nn.Module:
    prepared = q.prepare(model, images(1), target="onnxruntime", **options)  # type: ignore[arg-type]
    q.calibrate(prepared, [images()])
    return prepared


def test_equalisation_recovers_a_mobilenet_that_calibration_alone_ruins(
    unbalanced: nn.Module,
) -> None:
    x = images(64, seed=2)
    expected = logits(unbalanced, x)
    equal, moved = equalize(unbalanced, [images()])
    assert len(moved) >= 5
    assert (logits(equal, x) - expected).abs().max() < 1e-5 * expected.abs().max()
    before, after = (logits(quantised(m), x) for m in (unbalanced, equal))
    agree = [float((y.argmax(1) == expected.argmax(1)).float().mean()) for y in (before, after)]
    assert sqnr_db(expected, before) < 10
    assert sqnr_db(expected, after) > sqnr_db(expected, before) + 8
    assert agree[1] > agree[0] + 0.1


def test_equalisation_leaves_the_given_network_and_its_keys_alone(unbalanced: nn.Module) -> None:
    before = {k: v.clone() for k, v in unbalanced.state_dict().items()}
    equal, _ = equalize(unbalanced, [images()])
    assert all(torch.equal(v, before[k]) for k, v in unbalanced.state_dict().items())
    assert list(equal.state_dict()) == list(before)


def test_equalisation_leaves_each_layer_in_its_mode(unbalanced: nn.Module) -> None:
    model = copy.deepcopy(unbalanced).train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    norms[0].eval()
    before = [m.training for m in model.modules()]
    _, moved = equalize(model, [images()])
    assert moved and [m.training for m in model.modules()] == before
    assert before.count(False) == 1


def test_a_channel_that_a_relu6_cuts_off_stays_as_it_is() -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4)
    with torch.no_grad():
        first.bias.zero_()
        first.weight.mul_(torch.tensor([40.0, 0.01, 1.0, 0.1]).view(-1, 1, 1, 1))
    model = nn.Sequential(first, nn.ReLU6(), second).eval()
    equal, moved = equalize(model, [images()])
    assert moved == ["0"]
    ratio = (equal[0].weight / first.weight).flatten(1).mean(1)
    assert ratio[0].item() == 1.0
    assert ratio[1].item() > 50
    x = images(64, seed=3)
    assert (logits(equal, x) - logits(model, x)).abs().max() < 1e-4


def test_tokens_and_tied_weights_and_residual_sums_are_handled() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 8, 8)
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
            self.tied = nn.Linear(8, 16)
            self.tied.weight = self.up.weight
            self.narrow, self.wide, self.head = nn.Linear(8, 24), nn.Linear(24, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x).flatten(2).transpose(1, 2)
            x = x + self.down(torch.relu(self.up(x)) + self.tied(x))
            return self.head(self.wide(torch.relu(self.narrow(x))).mean(1))

    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():
        model.narrow.weight[3] *= 100
    equal, moved = equalize(model, [images()])
    assert "narrow" in moved
    assert "up" not in moved
    assert "embed" not in moved
    assert torch.allclose(logits(equal, images()), logits(model, images()), rtol=1e-4, atol=1e-5)


def test_a_batch_norm_over_tokens_is_neither_folded_nor_mended() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 8, 8)
            self.up, self.norm, self.down = nn.Linear(8, 24), nn.BatchNorm1d(16), nn.Linear(24, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x).flatten(2).transpose(1, 2)  # [B, 16, 8]
            return self.down(torch.relu(self.norm(self.up(x)))).mean(1)

    torch.manual_seed(0)
    model = settled(Net())
    x = images()
    made, found = repaired(model, x[:1], [x], x, Scheme("onnxruntime"), Repairs("on", "on", "off"))
    assert found["corrected_layers"] == 3
    assert sqnr_db(logits(model, x), logits(made, x)) > 30
    assert sqnr_db(logits(made, x), logits(q.to_export(made), x)) > 40


class Stream(nn.Module):
    """A residual stream with three writers and three readers, as in MobileNetV2, or with a ReLU
    behind each sum, as in ResNet."""

    def __init__(self, relu: bool) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, stride=2), nn.BatchNorm2d(12)
        self.up = nn.ModuleList(nn.Conv2d(12, 24, 1) for _ in range(2))
        self.down = nn.ModuleList(nn.Conv2d(24, 12, 1) for _ in range(2))
        self.last, self.head = nn.Conv2d(12, 32, 1), nn.Linear(32, 10)
        self.act = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        for up, down in zip(self.up, self.down, strict=True):
            x = self.act(x + down(torch.relu(up(x))))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


@pytest.mark.parametrize("relu", [False, True])
def test_a_residual_stream_is_evened_out_in_all_layers_that_add_to_it(relu: bool) -> None:
    torch.manual_seed(0)
    model = settled(Stream(relu))
    share = torch.logspace(0, -2.5, 12)
    writers, readers = (model.norm, *model.down), (*model.up, model.last)
    with torch.no_grad():  # the same function with channels that differ by up to 300
        for layer in writers:
            layer.weight.mul_(share.view(-1, *[1] * (layer.weight.dim() - 1)))
            layer.bias.mul_(share)
        for layer in readers:
            layer.weight.div_(share.view(1, -1, 1, 1))
    equal, moved = equalize(model, [images()])
    assert {"stem", "down.0", "down.1"} <= set(moved)
    x = images(64, seed=2)
    expected = logits(model, x)
    assert (logits(equal, x) - expected).abs().max() < 1e-5 * expected.abs().max()
    # One factor for each channel: what every writer is divided by, every reader is multiplied by.
    factor = model.norm.weight / equal.norm.weight
    for old, new in zip(model.down, equal.down, strict=True):
        assert torch.allclose(old.bias / new.bias, factor, rtol=1e-4)
    for old, new in zip(readers, (*equal.up, equal.last), strict=True):
        rows = (new.weight / old.weight).flatten(1)  # [O, 12], each row by a factor of its own
        assert torch.allclose(rows / rows[:, :1], (factor / factor[0]).expand_as(rows), rtol=1e-3)
    assert factor.max() / factor.min() > 30
    before, after = (sqnr_db(expected, logits(quantised(m), x)) for m in (model, equal))
    assert after > before + 6


def test_a_sum_with_a_tensor_of_another_shape_or_a_part_that_is_no_layer_is_left_alone() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
            self.third, self.wide = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
            self.head = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            gated = torch.sigmoid(self.second(x)) + self.first(x)
            widened = self.third(gated) + self.wide(gated).mean((2, 3), keepdim=True)
            return self.head(widened).mean((2, 3))

    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():
        for layer in (model.first, model.third):
            layer.weight[2] *= 100
    equal, moved = equalize(model, [images()])
    assert moved == []
    assert all(
        torch.equal(a, b) for a, b in zip(equal.parameters(), model.parameters(), strict=True)
    )


def test_bias_correction_takes_the_shift_of_the_mean_away() -> None:
    model = mobilenet()
    x = images(128, seed=4)
    expected = logits(model, x)
    prepared = quantised(model, weight_bits=5)
    before = (logits(prepared, x) - expected).mean(0).abs().max()
    shifts = correct_bias(prepared, [x])
    after = (logits(prepared, x) - expected).mean(0).abs().max()
    assert len(shifts) == 16
    assert max(shifts.values()) > 0.05
    assert after < 1e-5 < before
    fresh = images(128, seed=5)
    assert sqnr_db(logits(model, fresh), logits(prepared, fresh)) > 1 + sqnr_db(
        logits(model, fresh), logits(quantised(model, weight_bits=5), fresh)
    )


def small() -> nn.Module:
    torch.manual_seed(0)
    return settled(
        nn.Sequential(
            nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, groups=16), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 24, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(24, 10),
        )
    )  # fmt: skip


def test_adaround_lowers_the_error_of_every_layer_at_four_bits() -> None:
    model, x = small(), images(64, seed=6)
    prepared = quantised(model, weight_bits=4)
    nearest = sqnr_db(logits(model, x), logits(prepared, x))
    errors = adaround(prepared, [images(64)], steps=100)
    assert list(errors) == ["0", "3", "6", "10"]
    assert all(e.chosen <= e.nearest for e in errors.values())
    assert sum(e.chosen for e in errors.values()) < 0.7 * sum(e.nearest for e in errors.values())
    assert sqnr_db(logits(model, x), logits(prepared, x)) > nearest + 1.5
    # Every weight lies on its step, so the export holds the integers that were chosen.
    deployed = q.to_export(prepared)
    assert sqnr_db(logits(prepared, x), logits(deployed, x)) > 30
    for name in errors:
        layer = prepared.get_submodule(name)
        steps = layer.weight / layer.weight_quantizer.scale().view(
            -1, *[1] * (layer.weight.dim() - 1)
        )
        assert torch.allclose(steps, steps.round(), atol=1e-3)
        assert steps.abs().max() < 7.5


def test_adaround_is_the_same_every_time() -> None:
    ends = []
    for _ in range(2):
        prepared = quantised(small(), weight_bits=4)
        adaround(prepared, [images(16)], steps=20)
        ends.append(copy.deepcopy(prepared.state_dict()))
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])
