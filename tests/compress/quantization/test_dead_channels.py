"""A channel that is dead but for its bias does not wrap around in the runtime's 32-bit sum."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from vcompress.compress import quantization as q
from vcompress.export import onnx_export, parity
from vcompress.export.integer_kernels import wrong_kernel
from vcompress.export.runtime import run_onnx


def test_the_bias_of_a_dead_channel_fits_its_sum(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip
    conv, norm = model[0], model[1]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.bias is not None
    assert norm.running_var is not None
    with torch.no_grad():  # as a trained EfficientNet-Lite0 has one
        conv.weight[5] = 1e-7 * torch.randn(3, 3, 3)
        norm.running_var[5], norm.weight[5], norm.bias[5] = 1e-12, 0.005, -20.0
        conv.bias = None
    x = torch.randn(16, 3, 12, 12)
    prepared = q.prepare(model, x[:1], target="onnxruntime")
    q.calibrate(prepared, [x])
    deployed, file = q.to_export(prepared.eval()), tmp_path / "m.onnx"
    stored = [m for m in deployed.modules() if type(m).__name__ == "DeployedBias"]
    assert max(int(bias.integers.abs().max()) for bias in stored) <= 2**30
    onnx_export.export(deployed, file, ("input", (3, 12, 12)))
    assert wrong_kernel(file, x.numpy(), 16) is None
    plain, fused = (run_onnx(file, x.numpy(), optimised=on)[0] for on in (False, True))
    assert parity.compare(plain, fused, "regression").sqnr_db > 30
    assert parity.check(deployed, file, x).ok
