"""A network that cannot become ONNX is refused with the operator or the line that is to blame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from vcompress.bench.errors import UserError
from vcompress.export import failures, onnx_export
from vcompress.export.onnx_export import ExportError, check_traces, export
from vcompress.export.runtime import run_onnx


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)


class Kth(Small):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).flatten(2).kthvalue(3, dim=2).values)  # type: ignore[no-any-return]


class Singular(Small):
    """torch takes the operator apart first, into one that has no form either."""

    def forward(self, x: Tensor) -> Tensor:
        values = torch.linalg.svdvals(self.conv(x))
        return self.head(values.mean(2))  # type: ignore[no-any-return]


class Value(Small):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if x.mean() > 0:
            x = x * 2
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Inplace(Small):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.conv(x)).add_(1)
        x = nn.functional.hardswish(x, inplace=True)
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            Kth,
            r"ONNX has no form of aten\.kthvalue\.default \(test_failures\.py, line \d+: return ",
        ),
        (
            Singular,
            r"no form of aten\._linalg_svd\.default \(test_failures\.py, line \d+: values = ",
        ),
        (Value, r"branches on a value .*\(test_failures\.py, line \d+: if x\.mean\(\) > 0:\)"),
    ],
)
def test_the_reason_is_named_by_the_first_step_and_by_the_export(
    kind: type[nn.Module], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=f"^{kind.__name__} cannot be exported to ONNX: .*{said}"):
        check_traces(kind().eval(), (3, 16, 16))
    with pytest.raises(ExportError, match=said) as caught:
        export(kind().eval(), tmp_path / "m.onnx", ("input", (3, 16, 16)))
    assert "full stack trace" not in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "make", [Inplace, lambda: torchvision.models.mobilenet_v3_small(num_classes=4)]
)
def test_ordinary_networks_are_not_taken_apart_for_the_question(make: type[nn.Module]) -> None:
    with torch.no_grad(), onnx_export._silence():
        traced = torch.export.export(make().eval(), (torch.zeros(2, 3, 64, 64),), strict=False)
    with onnx_export._one_registry():
        table = ONNXRegistry.from_torchlib()
    assert [str(node.target) for node in failures._strange(traced, table)] == []


class Double(Small):
    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.conv2d(x.double(), self.conv.weight.double()).float()
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_what_onnx_runtime_has_no_kernel_for_is_one_message(tmp_path: Path) -> None:
    export(Double().eval(), tmp_path / "m.onnx", ("input", (3, 16, 16)))
    with pytest.raises(
        UserError, match=r"does not run the exported network: Could not find .*Conv"
    ):
        run_onnx(tmp_path / "m.onnx", np.zeros((1, 3, 16, 16), np.float32), optimised=True)
