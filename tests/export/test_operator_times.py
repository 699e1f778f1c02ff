"""What an int8 file spends more on than the float one is read from profiles of both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from vcompress.compress import quantization as q
from vcompress.export import onnx_export
from vcompress.export.operator_times import costs_more, family, operator_times


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A float network of two convolutions with a tanh between them, and its int8 form."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Tanh(), nn.Conv2d(16, 16, 3, groups=8)).eval()
    x = torch.randn(4, 3, 48, 48)
    prepared = q.prepare(model, x[:1], target="onnxruntime")
    q.calibrate(prepared, [x])
    shape = ("input", (3, 48, 48))
    onnx_export.export(model, folder / "float.onnx", shape)
    onnx_export.export(q.to_export(prepared.eval()), folder / "int8.onnx", shape)
    return folder / "float.onnx", folder / "int8.onnx"


def test_the_time_of_each_kernel_is_read(files: tuple[Path, Path]) -> None:
    feed = {"input": torch.randn(1, 3, 48, 48).numpy()}
    plain, int8 = (operator_times(file, feed, runs=5) for file in files)
    assert {family(kernel) for kernel in plain} >= {"Conv"}
    assert {"QLinearConv", "DequantizeLinear", "QuantizeLinear"} <= set(int8)
    assert all(0 < ms < 1000 for ms in (*plain.values(), *int8.values()))


def test_roundings_that_float_does_not_have_are_to_blame(files: tuple[Path, Path]) -> None:
    more = costs_more(*files, {"input": torch.randn(1, 3, 48, 48).numpy()})
    assert more["DequantizeLinear"] > 0
    assert list(more.values()) == sorted(more.values(), reverse=True)
    assert costs_more(files[1], files[1], {"input": torch.randn(1, 3, 48, 48).numpy()}).keys() <= {
        "Conv", "Tanh", "DequantizeLinear", "QuantizeLinear", "layout"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kernel", "operator"),
    [("QLinearConv", "Conv"), ("QGemm", "Gemm"), ("ReorderInput", "layout"), ("Tanh", "Tanh")],
)
def test_a_kernel_belongs_to_an_operator(kernel: str, operator: str) -> None:
    assert family(kernel) == operator
