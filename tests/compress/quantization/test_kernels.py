"""A grouped convolution whose integer kernel is slower on this machine stays in floating point."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vcompress.compress import quantization as q
from vcompress.compress.quantization import kernels
from vcompress.compress.quantization.kernels import Convolution, Times, conv_times
from vcompress.export import integers, onnx_export, parity
from vcompress.export.operator_times import operator_times

SHAPE = (3, 20, 20)


def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3, groups=16), nn.ReLU(),
        nn.Conv2d(32, 32, 3, groups=32), nn.ReLU(), nn.Conv2d(32, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 7),
    ]  # fmt: skip
    return nn.Sequential(*layers).eval(), torch.randn(32, *SHAPE)


@pytest.mark.parametrize(
    ("times", "kept"),
    [(Times(4.0, 0.2), ["2"]), (Times(0.2, 0.19), []), (Times(0.02, 0.01), [])],
    ids=["much slower", "as fast", "too short to matter"],
)
def test_the_times_on_this_machine_decide(
    times: Times, kept: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Convolution] = []
    monkeypatch.setattr(kernels, "conv_times", lambda conv: asked.append(conv) or times)
    model, x = network()
    placement = q.placement(q.prepare(model, x[:1], target="onnxruntime"))
    assert asked == [Convolution(16, 32, (3, 3), (1, 1), (1, 1), 16, (18, 18))]
    slow = [e["name"] for e in placement["float"] if "int8 is slower here" in e["reason"]]
    assert slow == kept
    assert q.count_quantised(placement)[0] == 5 - len(kept)


def test_both_kernels_are_timed() -> None:
    found = conv_times(Convolution(16, 32, (3, 3), (1, 1), (1, 1), 16, (18, 18)))
    assert 0 < found.int8 < 1000
    assert 0 < found.float32 < 1000
    assert found is conv_times(Convolution(16, 32, (3, 3), (1, 1), (1, 1), 16, (18, 18)))


@pytest.mark.parametrize("kept", ["2", "4", "6"])
def test_a_layer_that_is_kept_is_computed_in_floating_point(kept: str, tmp_path: Path) -> None:
    model, x = network()
    prepared = q.prepare(model, x[:1], target="onnxruntime", keep_float=(kept, "2"))
    q.calibrate(prepared, [x])
    deployed, file = q.to_export(prepared.eval()), tmp_path / "m.onnx"
    onnx_export.export(deployed, file, ("input", SHAPE))
    found = integers.read_back(file)
    wanted = len({kept, "2"})
    assert (found.meant, found.integer, found.float_operators) == (5 - wanted, 5 - wanted, wanted)
    times = operator_times(file, {"input": x[:1].numpy()}, runs=3)
    assert "LeakyRelu" not in times  # the identity that keeps it there is part of the layer
    assert parity.check(deployed, file, x).ok
    assert parity.compare(
        parity.run_torch(deployed, x), parity.run_onnx(file, x.numpy(), optimised=True)[0]
    ).sqnr_db > 100  # fmt: skip
