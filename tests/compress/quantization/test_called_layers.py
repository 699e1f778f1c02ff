"""Layers that are function calls: their weights may be computed, from parameters or from images."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vcompress.compress import quantization as q
from vcompress.export import onnx_export, parity
from vcompress.export.runtime import run_onnx


class Standardised(nn.Conv2d):
    """Weight standardisation, arXiv:1903.10520."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Net(nn.Module):
    """Convolutions with computed weights and batch norms, and a head of unit weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = Standardised(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.b, self.nb = Standardised(16, 16, 3, 1, 1, groups=4), nn.BatchNorm2d(16)
        self.directions = nn.Parameter(torch.randn(5, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.na(self.a(x)))
        x = torch.relu(self.nb(self.b(x)))
        return F.linear(x.mean((2, 3)), F.normalize(self.directions))


class ByImage(nn.Module):
    """A convolution whose weight is made of the images."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.make, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 64), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        weight = self.make(x.mean((0, 2, 3))).view(8, 8, 1, 1)
        return self.fc(torch.relu(F.conv2d(x, weight)).mean((2, 3)))


def images(count: int = 32) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def settled(model: nn.Module) -> nn.Module:
    model.train()
    with torch.no_grad():
        for _ in range(10):
            model(images())
    return model.eval()


def prepared(model: nn.Module) -> nn.Module:
    made = q.prepare(model, images(1), target="onnxruntime")
    q.calibrate(made, [images()])
    return made


def test_computed_weights_are_rounded_and_their_layers_run_in_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = settled(Net())
    made = prepared(model)
    assert q.count_quantised(q.placement(made))[0] == 3
    again = q.restore(model, q.placement(made))
    again.load_state_dict(made.state_dict())
    deployed = q.to_export(again.eval())
    file = tmp_path / "m.onnx"
    report = onnx_export.export(deployed, file, ("input", (3, 16, 16)))
    assert report.int8_tensors == 3
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "o.onnx")
    onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
    nodes = [node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node]
    assert (nodes.count("QLinearConv"), nodes.count("QGemm")) == (2, 1)
    got = run_onnx(file, images().numpy(), optimised=True)[0]
    assert parity.compare(parity.run_torch(model, images()), got).sqnr_db > 30
    assert parity.compare(parity.run_torch(deployed, images()), got).sqnr_db > 60


def test_the_parameters_behind_computed_weights_are_trained() -> None:
    torch.manual_seed(0)
    made = prepared(settled(Net())).train()
    made(images()).square().sum().backward()
    names = dict(made.named_parameters())
    for name in ("directions", "a.weight", "b.weight", "b.bias"):
        assert names[name].grad is not None, name
        assert float(names[name].grad.abs().sum()) > 0, name


def test_a_weight_that_is_made_of_the_images_stays_in_float() -> None:
    torch.manual_seed(0)
    model = ByImage().eval()
    made = prepared(model)
    reasons = {e["name"]: e["reason"] for e in q.placement(made)["float"]}
    assert reasons["conv2d"] == "its weight is made of the images"
    assert q.count_quantised(q.placement(made))[0] == 3
    wanted = parity.run_torch(model, images())
    assert parity.compare(wanted, parity.run_torch(q.to_export(made.eval()), images())).sqnr_db > 30
