"""Networks from preparation to export: placement, restoring, folding, bad input."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.compress import quantization as q


class Block(nn.Module):
    def __init__(self, into: int, out: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, inner, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(inner, out, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(inner), nn.BatchNorm2d(out)
        self.down = nn.Sequential(nn.Conv2d(into, out, 1, bias=False), nn.BatchNorm2d(out))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.down(x)
        return self.relu(y)


class Tiny(nn.Module):
    """A residual network with odd widths, as pruning leaves them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 7, 3, padding=1), nn.BatchNorm2d(7), nn.ReLU6())
        self.pool = nn.MaxPool2d(2)
        self.block = Block(7, 13, 5)
        self.gap, self.drop, self.fc = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.5), nn.Linear(13, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.pool(self.stem(x)))
        return self.fc(self.drop(torch.flatten(self.gap(x), 1)))


def images(count: int = 16) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def settled(model: nn.Module) -> nn.Module:
    """Batch statistics and gains as training leaves them."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.0, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    model.train()
    with torch.no_grad():
        for _ in range(5):
            model(images(64))
    return model.eval()


def quantised(model: nn.Module, target: str = "onnxruntime", **options: Any) -> nn.Module:
    prepared = q.prepare(model, images(1), target=target, **options)
    q.calibrate(prepared, [images(64)])
    return prepared.eval()


def sqnr_db(a: Tensor, b: Tensor) -> float:
    return float(10 * torch.log10(a.square().sum() / (a - b).square().sum()))


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    torch.manual_seed(3)
    return settled(Tiny())


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_the_quantised_network_is_near_the_float_one(tiny: nn.Module, target: str) -> None:
    x = images()
    with torch.no_grad():
        assert sqnr_db(tiny(x), quantised(tiny, target)(x)) > 25


@pytest.mark.parametrize("observer", ["mse", "minmax", "percentile", "entropy"])
def test_every_observer_gives_a_usable_range(tiny: nn.Module, observer: str) -> None:
    prepared = q.prepare(tiny, images(1), target="onnxruntime")
    q.calibrate(prepared, [images(64)], observer=observer)
    with torch.no_grad():
        assert sqnr_db(tiny(images()), prepared.eval()(images())) > 15


def test_before_calibration_activations_pass_and_only_weights_are_rounded(tiny: nn.Module) -> None:
    prepared = q.prepare(tiny, images(1), target="onnxruntime").eval()
    with torch.no_grad():
        assert sqnr_db(tiny(images()), prepared(images())) > 30


def test_onnxruntime_wants_inputs_and_outputs_quantised(tiny: nn.Module) -> None:
    where = q.placement(quantised(tiny))
    assert [a["node"] for a in where["activations"]] == [
        "x", "stem_2", "block_relu", "block_bn2", "block_down_1", "block_relu_1", "gap",
    ]  # fmt: skip
    assert [w["layer"] for w in where["weights"]] == [
        "stem.0", "block.conv1", "block.conv2", "block.down.0", "fc",
    ]  # fmt: skip
    assert where["float"] == []


def test_tensorrt_wants_inputs_and_the_shortcut_only(tiny: nn.Module) -> None:
    where = q.placement(quantised(tiny, "tensorrt"))
    # The stem's output feeds both branches; the shortcut convolution is the shorter branch. The
    # 7-channel layers are no multiple of 8 and stay in floating point, the classifier has M = 1.
    assert {a["node"] for a in where["activations"]} == {"x"}
    reasons = {entry["name"]: entry["reason"] for entry in where["float"]}
    assert "not multiples of 8" in reasons["block.conv1"]
    assert "gains nothing" in reasons["fc"]


def test_tensorrt_quantises_the_shorter_branch_of_a_residual_sum() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block = nn.Conv2d(3, 16, 3), Block(16, 24, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.block(self.stem(x)).mean((2, 3))

    where = q.placement(quantised(settled(Wide()), "tensorrt"))
    assert [a["node"] for a in where["activations"]] == [
        "x", "stem", "block_relu", "block_down_1",
    ]  # fmt: skip


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_json_and_weights_restore_the_network_bit_for_bit(tiny: nn.Module, target: str) -> None:
    prepared = quantised(tiny, target)
    again = q.restore(tiny, json.loads(json.dumps(q.placement(prepared))))
    again.load_state_dict(prepared.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(images()), prepared(images()))
    assert q.is_quantized(again)
    assert not q.is_quantized(tiny)


def test_preparing_leaves_the_float_network_as_it_was(tiny: nn.Module) -> None:
    before = {k: v.clone() for k, v in tiny.state_dict().items()}
    prepared = q.prepare(tiny, images(1), target="onnxruntime").train()
    prepared(images()).sum().backward()
    assert all(torch.equal(v, tiny.state_dict()[k]) for k, v in before.items())
    assert all(p.grad is None for p in tiny.parameters())


def test_a_step_reaches_every_parameter_and_lowers_the_loss(tiny: nn.Module) -> None:
    prepared = quantised(tiny)  # in evaluation: no dropout, so that the loss can be compared
    optimizer = torch.optim.Adam(prepared.parameters(), 1e-2)
    target = torch.randint(0, 4, (16,), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(prepared(images()), target)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    still = [n for n, p in prepared.named_parameters() if p.grad is None]
    assert still == ["activation_quantizers.x.log_scale"]  # the images do not change in training
    again = q.restore(tiny, q.placement(prepared))
    assert [n for n, p in again.named_parameters() if not p.requires_grad] == still
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_folding_bn_at_export_changes_ties_in_rounding_only(tiny: nn.Module, target: str) -> None:
    prepared = quantised(tiny, target)
    with torch.no_grad():
        assert sqnr_db(prepared(images()), q.to_export(prepared)(images())) > 35


def test_a_folded_bn_is_exact_with_gains_of_both_signs_and_zero() -> None:
    from vcompress.compress.quantization.lower import fold_bn

    torch.manual_seed(0)
    integers = torch.randint(-127, 128, (4, 3, 3, 3)).float()
    scale, bias = torch.rand(4) * 0.01, torch.randn(4)
    bn = nn.BatchNorm2d(4).eval()
    bn.weight.data = torch.tensor([1.5, -0.5, 0.0, 2.0])
    bn.bias.data.uniform_(-1, 1)
    bn.running_mean.uniform_(-1, 1)
    bn.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 8, 8)
    expected = bn(nn.functional.conv2d(x, integers * scale.view(-1, 1, 1, 1), bias))
    folded, step, offset = fold_bn(integers, scale, bias, bn)
    got = nn.functional.conv2d(x, folded * step.view(-1, 1, 1, 1), offset)
    assert torch.allclose(got, expected, atol=1e-5)
    assert (step > 0).all()
    assert folded[2].abs().max() == 0
    assert torch.equal(folded.abs()[[0, 1, 3]], integers.abs()[[0, 1, 3]])


def test_modules_that_are_asked_for_stay_in_floating_point(tiny: nn.Module) -> None:
    where = q.placement(quantised(tiny, keep_float=("block", "fc")))
    assert [w["layer"] for w in where["weights"]] == ["stem.0"]
    assert {e["name"] for e in where["float"] if e["reason"] == "asked for"} >= {
        "block.conv1", "block.conv2", "block.down.0", "fc",
    }  # fmt: skip


def test_a_name_that_is_not_in_the_network_suggests_the_nearest(tiny: nn.Module) -> None:
    with pytest.raises(UserError, match=r"'block.conv9'.*Did you mean 'block.conv"):
        q.prepare(tiny, images(1), target="onnxruntime", keep_float=("block.conv9",))


def test_an_unknown_target_lists_the_known_ones(tiny: nn.Module) -> None:
    with pytest.raises(UserError, match=r"onnxruntime, .*tensorrt"):
        q.prepare(tiny, images(1), target="tensorr")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_calibration_images_that_are_not_finite_are_refused(tiny: nn.Module, value: float) -> None:
    prepared = q.prepare(tiny, images(1), target="onnxruntime")
    broken = images(4)
    broken[2, 0, 3, 3] = value
    with pytest.raises(UserError, match=r"batch 1 .*not finite"):
        q.calibrate(prepared, [images(4), broken])


def test_calibration_without_images_is_refused(tiny: nn.Module) -> None:
    with pytest.raises(UserError, match="no images"):
        q.calibrate(q.prepare(tiny, images(1), target="onnxruntime"), [])


def test_one_calibration_image_is_enough(tiny: nn.Module) -> None:
    prepared = q.prepare(tiny, images(1), target="onnxruntime")
    q.calibrate(prepared, [images(1)])
    with torch.no_grad():
        assert torch.isfinite(prepared.eval()(images())).all()


def test_exporting_before_calibration_is_refused(tiny: nn.Module) -> None:
    with pytest.raises(UserError, match="never calibrated"):
        q.to_export(q.prepare(tiny, images(1), target="onnxruntime"))


def test_quantising_twice_is_refused(tiny: nn.Module) -> None:
    with pytest.raises(UserError, match="quantised already"):
        q.prepare(quantised(tiny), images(1), target="onnxruntime")


def test_a_placement_of_another_network_is_refused(tiny: nn.Module) -> None:
    with pytest.raises(UserError, match="same architecture"):
        q.restore(nn.Sequential(nn.Conv2d(3, 4, 3)), q.placement(quantised(tiny)))


def test_a_dead_relu_an_empty_channel_and_a_zero_gain_stay_finite() -> None:
    torch.manual_seed(0)
    model = settled(Tiny())
    model.block.bn1.weight.data.zero_()
    model.block.bn1.bias.data.fill_(-1.0)  # the ReLU behind it never opens
    model.block.conv2.weight.data[0].zero_()
    model.stem[1].weight.data[1] = 0.0
    prepared = quantised(model)
    with torch.no_grad():
        deployed = q.to_export(prepared)
        assert torch.isfinite(deployed(images())).all()
        assert sqnr_db(model(images()), deployed(images())) > 25
    scales = [b for n, b in deployed.named_buffers() if n.endswith("scale")]
    assert all(float(s.min()) > 1e-7 for s in scales)


def test_a_module_called_twice_and_a_shared_weight_are_quantised_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
            self.tied = nn.Conv2d(8, 8, 3, padding=1)
            self.tied.weight = self.conv.weight
            self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.bn1(self.conv(self.stem(x))))
            return self.tied(torch.relu(self.bn2(self.conv(x)))).mean((2, 3))

    model = settled(Twice())
    prepared = quantised(model)
    assert prepared.conv.weight is prepared.tied.weight
    with torch.no_grad():
        assert sqnr_db(model(images()), prepared(images())) > 25
        assert sqnr_db(model(images()), q.to_export(prepared)(images())) > 25


def test_a_module_without_layers_may_be_asked_for(tiny: nn.Module) -> None:
    where = q.placement(quantised(tiny, "tensorrt", keep_float=("pool", "stem.1")))
    assert [w["layer"] for w in where["weights"]] == ["stem.0"]


def test_dropout_is_alive_in_training_and_gone_in_the_export(tiny: nn.Module) -> None:
    class Functional(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            x = self.gap(self.block(self.pool(self.stem(x)))).flatten(1)
            return self.fc(nn.functional.dropout(x, 0.5, training=self.training))

    for model in (tiny, settled(Functional())):
        prepared = quantised(model)
        assert torch.equal(prepared(images()), prepared(images()))
        prepared.train()
        q.freeze_norms(prepared)
        assert not torch.equal(prepared(images()), prepared(images()))
        assert not any(isinstance(m, nn.Dropout) for m in q.to_export(prepared).modules())


def test_seven_bit_weights_use_half_the_range(tiny: nn.Module) -> None:
    deployed = q.to_export(quantised(tiny, weight_bits=7))
    integers = [b for n, b in deployed.named_buffers() if n.endswith("weight.integers")]
    assert len(integers) == 5
    assert max(int(i.abs().max()) for i in integers) == 63


def test_a_float16_network_is_refused_with_what_to_do() -> None:
    with pytest.raises(UserError, match=r"stem.0.weight is float16.*model.float\(\)"):
        q.prepare(Tiny().half(), images(1).half(), target="onnxruntime")


def test_mixed_precision_rounds_in_float32(tiny: nn.Module) -> None:
    prepared = quantised(tiny)
    with torch.no_grad():
        plain = prepared(images())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = prepared(images())
    assert sqnr_db(plain, mixed.float()) > 20


def test_a_network_without_convolutions_is_quantised_by_its_matrix_products() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(432, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 4)
    ).eval()
    prepared = quantised(model)
    assert [w["layer"] for w in q.placement(prepared)["weights"]] == ["1", "4"]
    with torch.no_grad():
        assert sqnr_db(model(images()), q.to_export(prepared)(images())) > 30


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_a_network_without_any_layer_says_that_nothing_is_to_quantise(target: str) -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.ReLU())
    with pytest.raises(UserError, match=f"nothing to quantise for {target}"):
        q.prepare(model, images(1), target=target)


def broken() -> nn.Module:
    """A dead ReLU, a channel of zeros and a gain of zero."""
    model = settled(Tiny())
    with torch.no_grad():
        model.block.bn1.weight.zero_()
        model.block.bn1.bias.fill_(-1.0)
        model.block.conv2.weight[0].zero_()
        model.stem[1].weight[1] = 0.0
    return model


@pytest.mark.parametrize("count", [1, 32])
def test_every_repair_lives_with_dead_channels_and_a_single_image(count: int) -> None:
    from vcompress.compress.quantization.ptq import Scheme
    from vcompress.compress.quantization.repairs import Repairs, repaired

    model = broken()
    made, found = repaired(
        model, images(1), [images(count)], images(8), Scheme("onnxruntime", weight_bits=6),
        Repairs("on", "on", "on"),
    )  # fmt: skip
    with torch.no_grad():
        out = q.to_export(made)(images())
    assert torch.isfinite(out).all()
    assert all(bool(torch.isfinite(t).all()) for t in made.state_dict().values())
    assert found["sqnr_db"] > 15
