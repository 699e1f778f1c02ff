"""`export.to_onnx`: any network, proved."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from vcompress import bench, compress
from vcompress.bench.errors import UserError
from vcompress.export import library, parity, to_onnx
from vcompress.export.onnx_export import ExportError, logits_of, named_outputs


class Both(NamedTuple):
    low: Tensor
    high: Tensor


class Two(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv = kind, nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor) -> Any:
        low = self.conv(images).mean((2, 3))
        kinds: dict[str, Any] = {
            "named": Both(low, low + 1), "dict": {"none": None, "low": low, "high": low + 1},
            "tuple": (low, low + 1), "out": {"aux": low + 1, "out": low},
        }  # fmt: skip
        return kinds[self.kind]


@pytest.mark.parametrize(
    ("kind", "output", "more"),
    [
        ("dict", None, 0), ("dict", "high", 1), ("named", "high", 1), ("named", None, 0),
        ("tuple", None, 0), ("out", None, 0), ("out", "aux", 1),
    ],
)  # fmt: skip
def test_one_output_is_written_by_its_name(
    tmp_path: Path, kind: str, output: str | None, more: int
) -> None:
    torch.manual_seed(0)
    model, images = Two(kind).train(), torch.randn(2, 3, 8, 8)
    made = to_onnx(model, tmp_path / "deep" / "net.onnx", images, output=output)
    assert model.training
    assert made.parity.images == library.PARITY_IMAGES
    assert made.path == made.report.path == tmp_path / "deep" / "net.onnx"
    session = onnxruntime.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    found = session.run(None, {"input": images.numpy()})[0]
    wanted = model.conv(images).mean((2, 3)) + more
    torch.testing.assert_close(torch.from_numpy(found), wanted.detach(), atol=1e-5, rtol=1e-5)
    assert [p.name for p in made.path.parent.iterdir()] == ["net.onnx"]


def test_metadata_batch_and_opset_are_as_asked(tmp_path: Path) -> None:
    made = to_onnx(
        Two("tuple"), tmp_path / "net.onnx", torch.randn(1, 3, 8, 8), opset=21,
        dynamic_batch=False, metadata={"who": "me"}, task="regression",
    )  # fmt: skip
    proto = onnx.load(str(made.path))
    assert proto.opset_import[0].version == 21
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert {p.key: p.value for p in proto.metadata_props} == {"who": "me"}
    assert made.parity.optimised.top1_agreement == 1.0  # nothing is decided


def test_a_file_that_computes_something_else_does_not_replace_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "net.onnx"
    file.write_bytes(b"old")
    real = parity.run_torch
    monkeypatch.setattr(parity, "run_torch", lambda *args, **kwargs: real(*args, **kwargs) + 1)
    with pytest.raises(ExportError, match=r"fails its parity check.*does not compute"):
        to_onnx(Two("tuple"), file, torch.randn(4, 3, 8, 8))
    assert file.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_a_module_says_how_its_network_is_lowered() -> None:
    class Marked(nn.Identity):
        lower_network = staticmethod(lambda model: nn.Sequential(model, nn.ReLU()))

    plain, marked = nn.Sequential(nn.Identity()), nn.Sequential(Marked())
    assert library.lowered(plain) is plain
    assert isinstance(library.lowered(marked)[1], nn.ReLU)  # type: ignore[index]


def test_bad_input_is_one_message(tmp_path: Path) -> None:
    model, images = Two("dict"), torch.randn(1, 3, 8, 8)

    def refused(message: str, path: str = "net.onnx", **given: Any) -> None:
        asked = {"model": model, "example": images, **given}
        with pytest.raises(UserError, match=message):
            to_onnx(path=tmp_path / path, **asked)
        assert not list(tmp_path.iterdir())

    refused("ends in .onnx", path="net.pt")
    refused("got a tuple; expected one tensor of floats", example=(images, images))
    refused(r"got \[1, 3, 8, 8\] int64; expected", example=images.long())
    refused(r"does not take the example \[1, 1, 8, 8\]: RuntimeError", example=images[:, :1])
    refused("output = 'hihg': the network gives low, high.*Did you mean 'high'", output="hihg")
    refused("gives a tuple without names", model=Two("tuple"), output="low")
    refused("got a str; expected a torch nn.Module", model="runs/net")


def test_the_output_that_counts() -> None:
    one, other = torch.zeros(1), torch.ones(1)
    assert logits_of(one) is one
    assert logits_of({"loss": None, "logits": one}) is one
    assert logits_of(Both(one, other), "high") is other
    with pytest.raises(UserError, match="gives a int; expected a tensor"):
        logits_of(3)
    with pytest.raises(UserError, match="gives a list; expected a tensor"):
        logits_of([])


def test_one_image_of_the_example_tells_whether_the_network_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    run = parity.run_torch
    monkeypatch.setattr(
        parity,
        "run_torch",
        lambda m, x, *more, **named: (asked.append(len(x)), run(m, x, *more, **named))[1],
    )
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    to_onnx(network, tmp_path / "net.onnx", torch.randn(100, 3, 8, 8))
    assert asked == [1, 100]  # the proof takes them all


class Face(nn.Module):
    """A trunk with PReLU, and heads for whether there is a face, its box and its landmarks."""

    def __init__(self, names: bool) -> None:
        super().__init__()
        self.names = names
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3)
        self.slopes, self.more = nn.PReLU(16), nn.PReLU(24)
        self.pool, self.dense = nn.MaxPool2d(3, 2, ceil_mode=True), nn.Linear(24 * 4 * 4, 32)
        self.face, self.box, self.marks = nn.Linear(32, 2), nn.Linear(32, 4), nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Any:
        x = self.more(self.b(self.pool(self.slopes(self.a(images)))))
        x = self.dense(nn.functional.adaptive_avg_pool2d(x, 4).permute(0, 3, 2, 1).flatten(1))
        box, (marks, face) = self.box(x), (self.marks(x), self.face(x).softmax(1))
        return {"box": box, "rest": (marks, face)} if self.names else (box, marks, face)


@pytest.mark.parametrize(
    ("names", "wanted"),
    [(False, ("output_0", "output_1", "output_2")), (True, ("box", "rest_0", "rest_1"))],
)
def test_every_output_of_a_quantised_network_is_written_and_proved(
    tmp_path: Path, names: bool, wanted: tuple[str, ...]
) -> None:
    torch.manual_seed(0)
    net, images = Face(names).eval(), torch.randn(48, 3, 24, 24)
    quantised = compress.quantize(net, images, images=32, held_out=16)
    assert quantised.report.layers == 6
    files = [tmp_path / "float.onnx", tmp_path / "int8.onnx"]
    for model, file in zip((net, quantised), files, strict=True):
        made = to_onnx(model, file, images[:16], every_output=True, task="regression")
        assert tuple(made.outputs) == wanted
        assert made.parity is min(made.outputs.values(), key=lambda p: p.optimised.sqnr_db)
        assert made.parity.optimised.sqnr_db > 60
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        assert [o.name for o in session.get_outputs()] == list(wanted)
        found = dict(zip(wanted, session.run(None, {"input": images.numpy()}), strict=True))
        reference = named_outputs(net(images))
        for name in wanted:
            level = parity.compare(reference[name].detach().numpy(), found[name], "regression")
            assert level.sqnr_db > (100 if model is net else 20), name
    compared = bench.compare(*files, threads=1, seconds=0.3, apart=False)
    assert compared.comparison is not None
    assert [m.measurement.shapes for m in compared.models] == [{"input": (1, 3, 24, 24)}] * 2


def test_one_output_of_a_tuple_has_a_name_and_both_options_are_refused(tmp_path: Path) -> None:
    net, images = Two("tuple").eval(), torch.randn(2, 3, 8, 8)
    assert torch.equal(logits_of(net(images), "output_1"), net(images)[1])
    with pytest.raises(UserError, match="give one of them"):
        to_onnx(net, tmp_path / "n.onnx", images, output="output_1", every_output=True)
