"""Answers of maps in the file, against torch's interpolation and argmax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from vcompress.bench.bundle import Preprocess
from vcompress.bench.errors import UserError
from vcompress.export import library
from vcompress.export.onnx_maps import add_answer, input_size
from vcompress.export.onnx_options import OnnxOptions, drawn_images, refine, session


def network(size: tuple[int, int] = (24, 36), stride: int = 4, classes: int = 5,
            opset: int = 20) -> onnx.ModelProto:  # fmt: skip
    """[batch, 3, h, w] -> [batch, classes, h / stride, w / stride]."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((classes, 3, stride, stride)).astype(np.float32)
    out = [-(-side // stride) for side in size]
    conv = helper.make_node("Conv", ["input", "w"], ["logits"], "conv", auto_pad="SAME_UPPER",
                            strides=[stride, stride])  # fmt: skip
    graph = helper.make_graph(
        [conv], "maps",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, *size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes, *out])],
        [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(proto: onnx.ModelProto, images: np.ndarray) -> Any:
    onnx.checker.check_model(proto, full_check=True)
    return session(proto.SerializeToString())({"input": images})[0]


IMAGES = np.random.default_rng(1).standard_normal((2, 3, 24, 36)).astype(np.float32)


@pytest.mark.parametrize(("stride", "opset"), [(4, 11), (4, 20), (5, 20)])
def test_logits_at_the_size_of_the_image_are_torchs(stride: int, opset: int) -> None:
    plain, large = network(stride=stride, opset=opset), network(stride=stride, opset=opset)
    add_answer(large, resize=True, argmax=False)
    wanted = F.interpolate(
        torch.from_numpy(run(plain, IMAGES)), size=(24, 36), mode="bilinear", align_corners=False
    )
    found = run(large, IMAGES)
    assert found.shape == (2, 5, 24, 36)
    assert np.abs(found - wanted.numpy()).max() < 1e-4
    decided = network(stride=stride, opset=opset)
    add_answer(decided, resize=True, argmax=True)
    classes = run(decided, IMAGES)
    assert classes.dtype == np.uint8
    assert (classes == wanted.argmax(1).numpy()).mean() > 0.999


def test_the_class_alone_stays_at_the_stride() -> None:
    plain, decided = network(), network()
    add_answer(decided, resize=False, argmax=True)
    assert (run(decided, IMAGES) == run(plain, IMAGES).argmax(1)).all()


def test_what_cannot_be_answered_is_refused() -> None:
    with pytest.raises(UserError, match=r"by no whole factor.*--opset 18"):
        add_answer(network(stride=5, opset=17), resize=True, argmax=False)
    with pytest.raises(UserError, match="operator set 10 has no such interpolation"):
        add_answer(network(opset=10), resize=True, argmax=False)
    with pytest.raises(UserError, match="300 classes do not fit into a byte"):
        add_answer(network(classes=300), resize=False, argmax=True)
    free = network()
    for dim in free.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.Clear()
        dim.dim_param = "free"
    with pytest.raises(UserError, match="takes images of any size"):
        input_size(free)
    flat = network()
    del flat.graph.output[0].type.tensor_type.shape.dim[2:]
    with pytest.raises(UserError, match="are for maps"):
        add_answer(flat, resize=False, argmax=True)


def test_a_file_takes_bytes_and_gives_bytes(tmp_path: Path) -> None:
    preprocess = Preprocess((24, 36), mean=(0.5,) * 3, std=(0.25,) * 3)
    onnx.save(network(), str(tmp_path / "m.onnx"))
    options = OnnxOptions(embed_preprocess="normalise", resize_in_graph=True, argmax=True)
    notes = refine(tmp_path / "m.onnx", options, preprocess, drawn_images(3)).notes
    assert any("100.000% of the pixels" in note for note in notes)
    proto = onnx.load(str(tmp_path / "m.onnx"))
    entry, out = proto.graph.input[0], proto.graph.output[0]
    assert entry.type.tensor_type.elem_type == out.type.tensor_type.elem_type == TensorProto.UINT8
    assert [d.dim_value for d in out.type.tensor_type.shape.dim][1:] == [24, 36]


class Grown(nn.Module):
    """Two maps of features, the coarser one at the finer one's size."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, stride, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        grown = F.interpolate(
            self.coarse(fine), size=fine.shape[-2:], mode="bilinear", align_corners=False
        )
        return fine + grown


@pytest.mark.parametrize(("stride", "scaled"), [(2, True), (3, False)])
def test_a_resize_by_whole_factors_computes_no_shape(
    stride: int, scaled: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net, example = Grown(stride).eval(), torch.randn(1, 3, 32, 32)
    library.to_onnx(net, tmp_path / "m.onnx", example)  # proved against torch
    kinds = [node.op_type for node in onnx.load(str(tmp_path / "m.onnx")).graph.node]
    assert ("Shape" not in kinds) == ("Concat" not in kinds) == scaled
    assert kinds.count("Resize") == 1
