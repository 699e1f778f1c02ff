"""The opset that was asked for is the one in the file, proved there, or it is refused."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.compress import quantization as q
from vcompress.export import to_onnx
from vcompress.export.graph import opset_of


class Net(nn.Module):
    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.last, self.fc = last, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nn.functional.max_pool2d(self.norm(self.conv(x)), 2)
        x = torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.fc(self.last(x)).softmax(1)


IMAGES = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def net(last: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return Net(last).eval()


@pytest.mark.parametrize("opset", [9, 13, 17, 18, 21, 25])
def test_the_file_is_in_the_opset_that_was_asked_for(tmp_path: Path, opset: int) -> None:
    model = net(nn.ReLU())
    made = to_onnx(model, tmp_path / "m.onnx", IMAGES, opset=opset, metadata={"made_by": "a test"})
    proto = onnx.load(str(made.path))
    assert opset_of(proto) == made.report.opset == opset
    assert {p.key: p.value for p in proto.metadata_props} == {"made_by": "a test"}
    session = onnxruntime.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        for count in (1, 8):
            found = session.run(None, {"input": IMAGES[:count].numpy()})[0]
            torch.testing.assert_close(torch.from_numpy(found), model(IMAGES[:count]))


def test_an_int8_file_keeps_its_quantisers_in_an_older_opset(tmp_path: Path) -> None:
    prepared = q.prepare(net(nn.ReLU()), IMAGES[:1], target="onnxruntime")
    q.calibrate(prepared, [IMAGES])
    new, old = (
        to_onnx(prepared, tmp_path / f"{opset}.onnx", IMAGES, opset=opset) for opset in (20, 13)
    )
    assert old.report.opset == 13
    assert old.report.qdq_after == new.report.qdq_after > 4
    assert old.report.int8_tensors == new.report.int8_tensors == 2
    assert old.parity.ok


@pytest.mark.parametrize(
    ("opset", "message"),
    [
        (6, r"opset 6: expected 7 to 25"),
        (26, r"opset 26: expected 7 to 25"),
        (13, r"opset 13: opset 16 has no LayerNormalization.*in opsets 17 to 25"),
    ],
)
def test_an_opset_that_does_not_hold_the_network_is_refused_with_those_that_do(
    tmp_path: Path, opset: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        to_onnx(net(nn.LayerNorm(8)), tmp_path / "m.onnx", IMAGES, opset=opset)
    assert not list(tmp_path.iterdir())
    to_onnx(net(nn.LayerNorm(8)), tmp_path / "m.onnx", IMAGES, opset=17)
