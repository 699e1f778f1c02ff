"""Networks that cannot be traced whole: their parts are quantised and make the whole way."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.compress import quantization as q
from vcompress.compress.quantization.ptq import Scheme
from vcompress.compress.quantization.repairs import Repairs, repaired
from vcompress.compress.quantization.sensitivity import sensitivity
from vcompress.export import onnx_export, parity


def images(count: int = 16, size: int = 16, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def sqnr_db(a: Tensor, b: Tensor) -> float:
    return float(10 * torch.log10(a.square().sum() / (a - b).square().sum()))


def backbone() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()
    )


class Branching(nn.Module):
    """Its own forward pass branches on a value, around a backbone that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.never = backbone(), nn.Conv2d(3, 3, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            x = self.never(x)
        return self.head(self.backbone(x).mean((2, 3)))


class Sized(Branching):
    """Branches on a shape."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] < 8:
            x = nn.functional.interpolate(x, size=8)
        return self.head(self.backbone(x).mean((2, 3)))


class Checked(Branching):
    """Asks for a tensor, which an export can follow."""

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError("expected a tensor")
        return self.head(self.backbone(x).mean((2, 3)))


class Stubborn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError("expected a tensor")
        return self.inner(x)


class Around(nn.Module):
    """One module in the middle of it stops the tracer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = backbone(), Stubborn(), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.middle(self.first(x)))).mean((2, 3))


def quantised(model: nn.Module, x: Tensor) -> nn.Module:
    prepared = q.prepare(model, x[:1], target="onnxruntime")
    q.calibrate(prepared, [x])
    return prepared.eval()


def restored(model: nn.Module, prepared: nn.Module) -> nn.Module:
    again = q.restore(model, json.loads(json.dumps(q.placement(prepared))))
    again.load_state_dict(prepared.state_dict())
    return again.eval()


@pytest.mark.parametrize(("kind", "layers"), [(Branching, 3), (Checked, 3), (Around, 4)])
def test_what_can_be_traced_is_quantised_and_restored_bit_for_bit(
    kind: type[nn.Module], layers: int
) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    x = images()
    prepared = quantised(model, x)
    where = q.placement(prepared)
    assert q.count_quantised(where)[0] == layers
    reasons = {e["name"]: e["reason"] for e in where["float"]}
    culprit = "middle" if kind is Around else kind.__name__
    assert "cannot be traced: at " in reasons[culprit]
    assert "test_parts.py" in reasons[culprit]
    if kind is Branching:
        assert "never called" in reasons["never"]
    again = restored(model, prepared)
    with torch.no_grad():
        assert sqnr_db(model(x), prepared(x)) > 25
        assert torch.equal(again(x), prepared(x))
        assert sqnr_db(prepared(x), q.to_export(prepared)(x)) > 35
    assert len(sensitivity(prepared, [(x, torch.zeros(16).long())])) == layers


class SizedInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 3, 1), Sized()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.relu(self.stem(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("kind", "layers"), [(Sized, 3), (SizedInside, 4)])
def test_a_network_that_branches_on_a_shape_is_quantised_whole(
    kind: type[nn.Module], layers: int
) -> None:
    torch.manual_seed(0)
    model, x = kind().eval(), images()
    prepared = quantised(model, x)
    where = q.placement(prepared)
    assert "parts" not in where and where["sizes"] == [3, 16, 16] and where["float"] == []
    assert q.count_quantised(where)[0] == layers
    again = restored(model, prepared)
    with torch.no_grad():
        assert torch.equal(again(x), prepared(x))
        assert sqnr_db(model(x), prepared(x)) > 25


def test_a_step_of_training_reaches_every_part() -> None:
    torch.manual_seed(0)
    prepared = quantised(Around(), images()).train()
    prepared(images()).square().mean().backward()
    assert all(p.grad is not None for p in prepared.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", [Checked, Around])
def test_the_exported_file_computes_the_same(kind: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    deployed = q.to_export(quantised(kind().eval(), images()))
    report = onnx_export.export(deployed, tmp_path / "m.onnx", ("input", (3, 16, 16)))
    assert report.int8_tensors == (4 if kind is Around else 3)
    found = parity.check(deployed, tmp_path / "m.onnx", images(64, seed=2))
    assert found.ok, found.message


def test_a_branch_on_a_value_cannot_be_exported_and_says_so(tmp_path: Path) -> None:
    deployed = q.to_export(quantised(Branching().eval(), images()))
    with pytest.raises(UserError, match=r"cannot be exported to ONNX.*branch"):
        onnx_export.export(deployed, tmp_path / "m.onnx", ("input", (3, 16, 16)))
    assert not list(tmp_path.iterdir())


def test_a_pattern_keeps_a_part_in_floating_point() -> None:
    prepared = q.prepare(Checked(), images(1), target="onnxruntime", keep_float=("backbone.3",))
    where = q.placement(prepared)
    assert q.count_quantised(where)[0] == 2
    assert {"name": "backbone.3", "operation": "conv", "reason": "asked for"} in where["float"]


def test_a_repair_that_was_asked_for_is_refused_in_parts_and_auto_leaves_it() -> None:
    torch.manual_seed(0)
    x, scheme = images(), Scheme("onnxruntime")
    made, found = repaired(Checked().eval(), x[:1], [x], x, scheme, Repairs())
    assert q.count_quantised(q.placement(made))[0] == 3
    assert found["sqnr_db"] == found["sqnr_db_before"] > 25
    with pytest.raises(UserError, match=r"equalize, adaround = on: .*quantised in parts"):
        repaired(Checked().eval(), x[:1], [x], x, scheme, Repairs(equalize="on", adaround="on"))


def test_nothing_that_can_be_quantised_names_the_line_that_stopped_the_tracer() -> None:
    class Empty(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(UserError, match=r"nothing to quantise.*Empty cannot be traced: at .*:\d+"):
        q.prepare(Empty(), images(1), target="onnxruntime")


def test_a_placement_whose_part_is_missing_is_refused() -> None:
    where = q.placement(quantised(Checked(), images()))
    with pytest.raises(UserError, match=r"part 'backbone'.*same architecture"):
        q.restore(nn.Sequential(nn.Conv2d(3, 4, 1)), where)


def same_convolutions() -> nn.Module:
    """The convolutions of timm's tf_ networks, whose padding branches on the shape."""
    layers = pytest.importorskip("timm.layers")
    return nn.Sequential(
        layers.Conv2dSame(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
        layers.Conv2dSame(8, 8, 5, stride=2, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
        layers.Conv2dSame(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    )  # fmt: skip


def convolutional_head() -> nn.Module:
    """timm's VGG, narrow: its head branches on a shape."""
    vgg = pytest.importorskip("timm.models.vgg")
    return vgg.VGG(
        [8, "M", 16, "M", 16, "M"], num_classes=5, mlp_ratio=0.01, norm_layer=nn.BatchNorm2d
    )


def lite0() -> nn.Module:
    return pytest.importorskip("timm").create_model("tf_efficientnet_lite0", num_classes=5)


@pytest.mark.parametrize(
    ("make", "layers"),
    [
        (same_convolutions, 4),
        (convolutional_head, 6),
        pytest.param(lite0, 50, marks=pytest.mark.slow),
    ],
)
def test_networks_of_timm_that_branch_on_a_shape(
    make: Callable[[], nn.Module], layers: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = make().eval()
    x = images(8, 31)
    prepared = quantised(model, x)
    assert q.count_quantised(q.placement(prepared))[0] == layers
    again = restored(model, prepared)
    with torch.no_grad():
        assert torch.equal(again(x), prepared(x))
        assert sqnr_db(model(x), prepared(x)) > 20
    deployed = q.to_export(prepared)
    file = tmp_path / "m.onnx"
    onnx_export.export(deployed, file, ("input", (3, 31, 31)))
    assert parity.check(deployed, file, images(32, 31, seed=2)).ok
    operators = Counter(n.op_type for n in onnx.load(str(file)).graph.node)
    assert operators["Pad"] == 0


class Table(nn.Module):
    """A position bias from a table that a layer works out, as in Swin V2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.position, self.head = nn.Conv2d(3, 8, 3), nn.Linear(2, 8), nn.Linear(8, 4)
        self.register_buffer("table", torch.randn(1, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias: torch.Tensor = self.position(self.table)
        out: torch.Tensor = self.head(self.conv(x).mean((2, 3)) + bias)
        return out


def test_a_layer_that_no_image_reaches_stays_as_it_is_and_the_file_is_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    prepared = quantised(Table(), images())
    found = q.placement(prepared)
    assert {e["layer"] for e in found["weights"]} == {"conv", "head"}
    assert any(e["name"] == "position" and "constants" in e["reason"] for e in found["float"])
    deployed = q.to_export(prepared.eval())
    shape = tuple(images().shape[1:])
    report = onnx_export.export(deployed, tmp_path / "m.onnx", ("input", shape))
    assert report.size_bytes > 0
