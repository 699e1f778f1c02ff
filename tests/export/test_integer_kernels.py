"""A wrong integer kernel of the runtime is found, and average pools do not meet the one that is."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from vcompress import compress, export
from vcompress.export.integer_kernels import wrong_kernel
from vcompress.export.runtime import run_onnx


def pooled(path: Path, **attributes: int | list[int]) -> None:
    """An image that is rounded, pooled and rounded again."""
    info = helper.make_tensor_value_info
    scale = numpy_helper.from_array(np.float32(1 / 255), "scale")
    zero = numpy_helper.from_array(np.uint8(0), "zero")
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["image_int"]),
        helper.make_node("DequantizeLinear", ["image_int", "scale", "zero"], ["image_q"]),
        helper.make_node("AveragePool", ["image_q"], ["pool"], kernel_shape=[2, 2], strides=[2, 2],
                         **attributes),
        helper.make_node("QuantizeLinear", ["pool", "scale", "zero"], ["pool_int"]),
        helper.make_node("DequantizeLinear", ["pool_int", "scale", "zero"], ["logits"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [info("image", TensorProto.FLOAT, [1, 2, 7, 7])],
        [info("logits", TensorProto.FLOAT, None)], [scale, zero],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 19)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(path))


def test_the_average_pool_that_reaches_over_the_border_is_found_wrong(tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((1, 2, 7, 7), np.float32)
    pooled(tmp_path / "wrong.onnx", ceil_mode=1, count_include_pad=1)
    found = wrong_kernel(tmp_path / "wrong.onnx", image, 1)
    assert found is not None and found.startswith("AveragePool before pool_int, which")
    pooled(tmp_path / "right.onnx", ceil_mode=1, count_include_pad=0)
    assert wrong_kernel(tmp_path / "right.onnx", image, 1) is None


@pytest.mark.parametrize("size", [16, 17])
@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(2, ceil_mode=True),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        nn.AvgPool2d(3, 2, 1),
    ],
    ids=str,
)
def test_pools_over_the_border_are_right_in_int8(
    tmp_path: Path, pool: nn.Module, size: int
) -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), pool, nn.Conv2d(8, 8, 1), nn.Flatten()
    model = nn.Sequential(*layers).eval()
    images = torch.rand(8, 3, size, size)
    made = compress.quantize(model, images, images=6, held_out=2)
    file = export.to_onnx(made, tmp_path / "m.onnx", images)
    assert file.parity.optimised.sqnr_db > 60
    with torch.no_grad():
        wanted = model(images).numpy()
    got = run_onnx(tmp_path / "m.onnx", images.numpy(), optimised=True)[0]
    assert 10 * np.log10(np.square(wanted).sum() / np.square(wanted - got).sum()) > 40
