"""A network whose outputs for an image depend on its batch is found, and its layer named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vcompress.compress import quantization as q
from vcompress.export import to_onnx
from vcompress.export.mixing import mixed_layer


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Whole(nn.Module):
    """Mixes in its own forward pass and in no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return (x / x.std()).mean((2, 3))


def net(norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


def images(count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(count, 3, 8, 8, generator=generator)
        * torch.arange(1.0, count + 1)[:, None, None, None]
    )


@pytest.mark.parametrize(
    ("norm", "found"),
    [
        (nn.BatchNorm2d(4), None),
        (nn.InstanceNorm2d(4), None),
        (nn.BatchNorm2d(4, track_running_stats=False), "1 (BatchNorm2d)"),
        (nn.Sequential(nn.Identity(), Centred()), "1.1 (Centred)"),
    ],
)
def test_the_layer_that_mixes_images_is_named(norm: nn.Module, found: str | None) -> None:
    model = net(norm).train()
    assert mixed_layer(model, images()) == found
    assert all(module.training for module in model.modules())


def test_a_network_that_mixes_in_its_own_forward_pass_is_named_itself() -> None:
    assert mixed_layer(Whole(), images()) == "Whole"
    assert mixed_layer(Whole(), images(1)) is None


def test_a_quantised_network_does_not_mix_by_its_rounding() -> None:
    model = net(nn.BatchNorm2d(4)).eval()
    prepared = q.prepare(model, images(1), target="onnxruntime")
    q.calibrate(prepared, [images()])
    assert mixed_layer(q.to_export(prepared), images(), rounds=True) is None


def test_parity_is_proved_at_batch_1_too_and_says_what_mixes(tmp_path: Path) -> None:
    own = to_onnx(net(nn.BatchNorm2d(4)), tmp_path / "own.onnx", images()).parity
    assert own.alone is not None and own.alone.sqnr_db > 100
    assert own.mixes is None and "batch" not in own.message
    mixed = to_onnx(
        net(nn.BatchNorm2d(4, track_running_stats=False)), tmp_path / "mixed.onnx", images()
    ).parity
    assert mixed.ok and mixed.alone is not None and mixed.alone.sqnr_db > 100
    assert mixed.mixes == "1 (BatchNorm2d)"
    assert "depends on the others of its batch, since 1 (BatchNorm2d)" in mixed.message
    fixed = to_onnx(
        net(nn.BatchNorm2d(4, track_running_stats=False)), tmp_path / "fixed.onnx", images(),
        dynamic_batch=False,
    ).parity  # fmt: skip
    assert fixed.ok
