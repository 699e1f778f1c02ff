"""What is taken out of a graph or opened, so that layers are found."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vcompress.compress import quantization as q


def images(count: int = 16) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class Idle(nn.Module):
    """What does nothing stands between a batch norm and its ReLU, as in timm's ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.idle, self.act, self.conv2 = nn.Identity(), nn.ReLU(), nn.Conv2d(8, 8, 3)
        self.last = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv2(self.act(self.idle(self.bn1(self.conv1(x))))).mean((2, 3)))


def test_a_module_that_does_nothing_does_not_part_a_layer_from_its_relu() -> None:
    prepared = q.prepare(Idle().eval(), images(1), target="onnxruntime")
    q.calibrate(prepared, [images(8)])
    nodes = [a["node"] for a in q.placement(prepared)["activations"]]
    assert nodes == ["x", "act", "conv2", "mean"]
    assert q.placement(prepared)["activations"][1]["relu"]


def test_the_batch_norms_of_timm_that_activate_are_folded() -> None:
    norms = pytest.importorskip("timm.layers")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        norms.BatchNormAct2d(8),
        nn.Conv2d(8, 8, 3, bias=False),
        norms.BatchNormAct2d(8, act_layer=nn.SiLU),
        nn.Flatten(),
        nn.Linear(8 * 12 * 12, 5),
    ).eval()
    for norm in (model[1], model[3]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(4, 3, 16, 16)
    prepared = q.prepare(model, x[:1], target="onnxruntime")
    q.calibrate(prepared, [x])
    assert set(model.state_dict()) <= {k.replace(".layer", "") for k in prepared.state_dict()}
    deployed = q.to_export(prepared.eval())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in deployed.modules())
    with torch.no_grad():
        assert float((deployed(x) - model(x)).abs().max()) < 0.05 * float(model(x).abs().max())


NAMES = ("code", "graph", "meta", "recompile", "print_readable", "activation_quantizers")


class Named(nn.Module):
    """Children, a parameter and a buffer with names that a graph has of its own."""

    def __init__(self, name: str, kind: str) -> None:
        super().__init__()
        self.kind, self.name = kind, name
        self.first, self.fc = nn.Conv2d(3, 8, 3, 1, 1), nn.Linear(8, 5)
        if kind == "child":
            setattr(self, name, nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(inplace=True)))
        elif kind == "parameter":
            setattr(self, name, nn.Parameter(torch.full((8, 1, 1), 1.5)))
        else:
            self.register_buffer(name, torch.full((8, 1, 1), 1.5))

    def forward(self, x: Tensor) -> Tensor:
        x, own = torch.relu(self.first(x)), getattr(self, self.name)
        x = own(x) if self.kind == "child" else x * own
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("kind", ["child", "parameter", "buffer"])
@pytest.mark.parametrize("name", NAMES)
def test_a_network_may_use_the_names_that_a_graph_has_of_its_own(name: str, kind: str) -> None:
    torch.manual_seed(0)
    model = Named(name, kind).eval()
    prepared = q.prepare(model, images(1), target="onnxruntime")
    q.calibrate(prepared, [images()])
    again = q.restore(model, q.placement(prepared))
    again.load_state_dict(prepared.state_dict())
    layers = [w["layer"] for w in q.placement(prepared)["weights"]]
    assert layers == ["first", *([f"{name}.0"] if kind == "child" else []), "fc"]
    with torch.no_grad():
        wanted, got = model(images()), q.to_export(again.eval())(images())
    assert float((got - wanted).norm()) < 0.03 * float(wanted.norm())
    if kind == "child":
        kept = q.prepare(model, images(1), target="onnxruntime", keep_float=(name,))
        assert [w["layer"] for w in q.placement(kept)["weights"]] == ["first", "fc"]


def test_a_network_in_parts_may_have_a_child_called_meta() -> None:
    class Branching(Named):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if float(x.detach().sum()) > -1e9 else x

    torch.manual_seed(0)
    model = Branching("meta", "child").eval()
    prepared = q.prepare(model, images(1), target="onnxruntime")
    q.calibrate(prepared, [images()])
    again = q.restore(model, q.placement(prepared))
    again.load_state_dict(prepared.state_dict())
    with torch.no_grad():
        wanted = model(images())
        assert float((q.to_export(again.eval())(images()) - wanted).norm()) < 0.03 * float(
            wanted.norm()
        )
    assert q.count_quantised(q.placement(again))[0] == 3
