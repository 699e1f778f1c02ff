"""The OpenVINO target: where it quantises, and what OpenVINO makes of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vcompress.compress.pipeline.measure import runtime_of
from vcompress.compress.pipeline.openvino_proof import openvino_parity
from vcompress.compress.quantization import calibrate, placement, prepare, to_export
from vcompress.export import parity, parity_openvino
from vcompress.export.onnx_export import export


class Block(nn.Module):
    """A residual block: dense or depthwise convolution, then a pointwise one."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.relu(self.bn(self.first(x)))
        return torch.relu(x + self.bn2(self.second(out)))


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor]:
    """A small network trained for a few seconds on the digits, with images it has not seen."""
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    images = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
    images = nn.functional.interpolate(images, 16)
    labels = torch.tensor(digits.target)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        Block(16, 1), nn.MaxPool2d(2), Block(16, 16),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    for _ in range(4):
        for batch in torch.randperm(800).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()
    return net.eval(), images


def quantised(trained: tuple[nn.Module, Tensor], target: str = "openvino") -> nn.Module:
    net, images = trained
    found = prepare(net, images[:1], target=target)
    # By the ranges of 256 images the ground of a whole channel would be a tie of the rounding.
    calibrate(found, [images[:128]], "mse")
    return found


def test_inputs_of_layers_and_the_shortcut_are_quantised_and_no_outputs(
    trained: tuple[nn.Module, Tensor],
) -> None:
    where = placement(quantised(trained))
    assert len(where["weights"]) == 6
    # the image, four inputs of convolutions (two of them shortcuts too), the pooled vector
    assert len(where["activations"]) == 6
    assert where["unsigned"] and not where["repeat"]
    outputs = placement(quantised(trained, "onnxruntime"))["activations"]
    assert len(outputs) > len(where["activations"])


def test_openvino_runs_every_layer_in_int8_and_agrees(
    trained: tuple[nn.Module, Tensor], tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    model, images = quantised(trained), trained[1][800:]
    deployed, file = to_export(model), tmp_path / "model.onnx"
    export(deployed, file, ("input", (1, 16, 16)))
    found = parity_openvino.check(deployed, file, images)
    assert (found.int8_layers, found.float_layers) == (6, ())
    assert found.images == len(images) == 997
    assert found.agreement.top1_agreement >= 0.999
    assert found.agreement.sqnr_db >= 40
    fake = parity.compare(parity.run_torch(model, images), parity.run_torch(deployed, images))
    assert fake.top1_agreement >= 0.999
    assert parity.check(deployed, file, images).ok


def test_the_proof_is_made_for_its_own_target_only(
    trained: tuple[nn.Module, Tensor], tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    model, images = quantised(trained), trained[1][:32]
    file = tmp_path / "model.onnx"
    export(to_export(model), file, ("input", (1, 16, 16)))

    def parity_of(network: nn.Module) -> dict[str, Any] | None:
        runtime = runtime_of(network, file)
        return openvino_parity(network, file, images, runtime, "classification")

    found = parity_of(model)
    assert found is not None and found["int8_layers"] == 6
    assert parity_of(trained[0]) is None
    assert parity_of(quantised(trained, "tensorrt")) is None


def test_layers_in_floating_point_are_named(
    trained: tuple[nn.Module, Tensor], tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    net, images = trained
    file = tmp_path / "float.onnx"
    export(net, file, ("input", (1, 16, 16)))
    found = parity_openvino.check(net, file, images[:64])
    assert (found.int8_layers, len(found.float_layers)) == (0, 6)
    assert found.agreement.sqnr_db > 80
