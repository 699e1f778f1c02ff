"""Layers that stay in floating point between two roundings do so in ONNX Runtime too."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from vcompress import compress, export
from vcompress.export.runtime import run_onnx


class Between(nn.Module):
    """`middle` stands between convolutions that run in int8."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle = nn.Conv2d(3, 16, 3, padding=1), middle
        self.last, self.head = nn.Conv2d(16, 16, 3, 2, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.middle(torch.relu(self.first(x))))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Pooled(nn.Module):
    """The pool has another reader, so that both ways need their own."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.apart = nn.MaxPool2d(2), nn.Conv2d(16, 16, 1, bias=False)
        self.other = nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(x)
        return torch.relu(self.apart(x)) + torch.relu(self.other(x))


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flat, self.apart, self.wide = nn.Flatten(), nn.Linear(1024, 32), nn.Linear(32, 1024)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(torch.relu(self.apart(self.flat(x)))).view(-1, 16, 8, 8)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("middle", "kept"),
    [
        (nn.ConvTranspose2d(16, 16, 2, 2), ()),
        (nn.ConvTranspose2d(16, 16, 2, 2, groups=4, bias=False), ()),
        (nn.Conv2d(16, 16, 3, padding=1), ("middle",)),
        (nn.Conv2d(16, 16, 3, padding=1, groups=16), ("middle",)),
        (Pooled(), ("middle.apart",)),
        (Rows(), ("middle.apart",)),
    ],
    ids=["transposed", "grouped", "kept", "depthwise", "pooled", "rows"],
)
def test_what_runs_is_what_was_exported(
    middle: nn.Module, kept: tuple[str, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    images = torch.randn(48, 3, 8, 8)
    made = compress.quantize(
        Between(middle).eval(), images, images=32, held_out=16, keep_float=kept
    )
    file = tmp_path / "made.onnx"
    export.to_onnx(made, file, images[:8])
    with torch.no_grad():
        wanted = export.library.lowered(made.eval())(images).numpy()
    got = run_onnx(file, images.numpy(), optimised=True, batch_size=48)[0]
    error = float(np.square(wanted - got).sum())
    assert error == 0 or 10 * math.log10(float(np.square(wanted).sum()) / error) > 100

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath).graph
    constants = {tensor.name for tensor in graph.initializer}
    floats = [
        n
        for n in graph.node
        if n.op_type in ("Conv", "FusedConv", "ConvTranspose", "FusedGemm", "Gemm")
    ]
    assert len(floats) == 1 and floats[0].input[1] in constants
