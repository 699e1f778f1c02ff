"""Padding before a convolution moves integers or becomes the convolution's own: it runs in int8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vcompress.compress import quantization as q
from vcompress.compress.quantization import ptq
from vcompress.compress.quantization.ptq import Scheme
from vcompress.export import onnx_export, parity
from vcompress.export.runtime import run_onnx


class Odd(nn.Module):
    """Convolutions that pad by values of the map, grouped, strided, of odd kernels."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 5, 2, 2, padding_mode=mode)
        self.b = nn.Conv2d(16, 16, 3, 1, (1, 1), padding_mode=mode, groups=4)
        self.n = nn.BatchNorm2d(16)
        self.c = nn.Conv2d(16, 16, (3, 1), 2, (1, 0), padding_mode=mode)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x = x + torch.relu(self.n(self.b(x)))
        return self.fc(torch.relu(self.c(x)).mean((2, 3)))


class StaticPadding(nn.Conv2d):
    """A convolution with a padding module of its own."""

    def __init__(self, *args: int) -> None:
        super().__init__(*args, bias=False)
        self.static_padding = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.static_padding(x)
        return F.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class Subclasses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = StaticPadding(3, 16, 3, 2), nn.BatchNorm2d(16)
        self.b, self.nb = StaticPadding(16, 16, 2), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.na(self.a(x)))
        return self.fc(F.relu6(self.nb(self.b(x))).mean((2, 3)))


class Modules(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 16, 3, 2), nn.Conv2d(16, 16, 3), nn.Linear(16, 5)
        self.reflect, self.replicate = nn.ReflectionPad2d(1), nn.ReplicationPad2d((0, 1, 1, 0))
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(self.reflect(x)))
        x = torch.relu(self.b(F.pad(self.replicate(x), (1, 0, 0, 2))))
        return self.fc(self.pool(F.pad(x, (1, 2, 1, 2))).mean((2, 3)))


def images(count: int = 32) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def settled(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = build().train()
    with torch.no_grad():
        for _ in range(10):
            model(images())
    return model.eval()


def deployed(model: nn.Module, target: str) -> nn.Module:
    prepared = q.prepare(model, images(1), target=target)
    q.calibrate(prepared, [images()])
    again = q.restore(model, q.placement(prepared))
    again.load_state_dict(prepared.state_dict())
    return q.to_export(again.eval())


def optimised(file: Path) -> list[str]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(file.with_name("o.onnx"))
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(file.with_name("o.onnx")).graph.node]


@pytest.mark.parametrize(
    ("build", "convolutions"),
    [
        (lambda: Odd("reflect"), 3), (lambda: Odd("replicate"), 3), (lambda: Odd("circular"), 3),
        (Subclasses, 2), (Modules, 2),
    ],
    ids=["reflect", "replicate", "circular", "subclasses", "modules"],
)  # fmt: skip
def test_a_padded_convolution_runs_in_integers(
    build: Callable[[], nn.Module], convolutions: int, tmp_path: Path
) -> None:
    model = settled(build)
    made, file = deployed(model, "onnxruntime"), tmp_path / "m.onnx"
    onnx_export.export(made, file, ("input", (3, 16, 16)))
    nodes = optimised(file)
    assert nodes.count("QLinearConv") == convolutions
    assert nodes.count("QuantizeLinear") == 1  # of the images
    assert not {"Conv", "FusedConv", "BatchNormalization", "Gather"} & set(nodes)
    got = run_onnx(file, images().numpy(), optimised=True)[0]
    assert parity.compare(parity.run_torch(model, images()), got).sqnr_db > 30
    assert parity.compare(parity.run_torch(made, images()), got).sqnr_db > 60
    assert parity.first_divergence(made, file, images()) is None


def test_what_tensorrt_pads_is_rounded_again_behind_it(tmp_path: Path) -> None:
    made, file = deployed(settled(lambda: Odd("reflect")), "tensorrt"), tmp_path / "m.onnx"
    onnx_export.export(made, file, ("input", (3, 16, 16)))
    graph = onnx.load(file).graph
    maker = {name: node for node in graph.node for name in node.output}
    rounded = [n for n in graph.node if n.op_type == "Conv" and n.input[1] in maker]
    assert rounded
    for conv in rounded:
        steps = [maker[conv.input[0]]]
        for _ in range(2):
            steps.append(maker[steps[-1].input[0]])
        assert [n.op_type for n in steps] == ["DequantizeLinear", "QuantizeLinear", "Pad"]


class DynamicPadding(nn.Conv2d):
    """A convolution that computes its padding from the size of the map, and branches on it."""

    def forward(self, x: Tensor) -> Tensor:
        edges: list[int] = []
        for axis in (1, 0):
            size, stride = x.shape[2 + axis], self.stride[axis]
            missing = max((-(-size // stride) - 1) * stride + self.kernel_size[axis] - size, 0)
            edges += [missing // 2, missing - missing // 2]
        if any(edges):
            x = F.pad(x, edges)
        return F.conv2d(x, self.weight, self.bias, self.stride)


def test_padding_that_depends_on_the_size_of_the_map_is_traced_and_restored(tmp_path: Path) -> None:
    model = settled(
        lambda: nn.Sequential(
            DynamicPadding(3, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU(),
            DynamicPadding(16, 16, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(16, 5),
        )
    )  # fmt: skip
    scheme = Scheme("onnxruntime")
    quantised, file = ptq.quantised(model, images()[:1], [images()], scheme), tmp_path / "m.onnx"
    assert not hasattr(model, "input_shape")
    again = q.restore(model, q.placement(quantised))  # which knows no size by itself
    again.load_state_dict(quantised.state_dict())
    onnx_export.export(q.to_export(again.eval()), file, ("input", (3, 16, 16)))
    assert optimised(file).count("QLinearConv") == 2
    got = run_onnx(file, images().numpy(), optimised=True)[0]
    assert parity.compare(parity.run_torch(model, images()), got).sqnr_db > 30
