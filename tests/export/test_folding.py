"""Weight norm, spectral norm and other parametrisations, by torch's older hooks too."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from vcompress import compress
from vcompress.bench.errors import UserError
from vcompress.compress.models import changes
from vcompress.compress.models.cost import count_macs
from vcompress.export import to_onnx
from vcompress.export.folding import computed, fold, folded, modernise

warnings.filterwarnings("ignore", category=FutureWarning)
Wrap = Callable[[nn.Module], nn.Module]


class Halved(nn.Module):
    """A parametrisation of the user's own."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def halved(module: nn.Module) -> nn.Module:
    parametrize.register_parametrization(module, "weight", Halved())
    return module


KINDS: dict[str, Wrap] = {
    "weight": parametrizations.weight_norm, "spectral": parametrizations.spectral_norm,
    "older weight": nn.utils.weight_norm, "older spectral": nn.utils.spectral_norm,
    "own": halved,
}  # fmt: skip


class Net(nn.Module):
    def __init__(self, wrap: Wrap, classes: int = 5) -> None:
        super().__init__()
        self.a, self.norm = wrap(nn.Conv2d(3, 16, 3)), nn.BatchNorm2d(16)
        self.b = wrap(nn.Conv2d(16, 16, 3))
        self.fc = wrap(nn.Linear(16, classes, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.a(x)))
        return self.fc(torch.relu(self.b(x)).mean((2, 3)))


IMAGES = torch.randn(32, 3, 10, 10, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=KINDS)
def net(request: pytest.FixtureRequest) -> nn.Module:
    """After a training step."""
    torch.manual_seed(0)
    made = Net(KINDS[request.param])
    made(IMAGES).square().mean().backward()
    return made.eval()


def answer(model: nn.Module) -> Tensor:
    with torch.no_grad():
        out: Tensor = model.eval()(IMAGES)
    return out


def test_a_folded_network_computes_the_same_with_plain_weights(net: nn.Module) -> None:
    wanted = answer(net)
    assert computed(net) == ("a.weight", "b.weight", "fc.weight")
    plain = folded(net)
    assert computed(net) == ("a.weight", "b.weight", "fc.weight")
    assert not computed(plain)
    assert sorted(dict(plain.named_parameters())) == [
        "a.bias", "a.weight", "b.bias", "b.weight", "fc.weight", "norm.bias", "norm.weight",
    ]  # fmt: skip
    torch.testing.assert_close(answer(plain), wanted)
    assert folded(plain) is plain


def test_older_hooks_become_parametrisations_that_train_and_can_be_copied(net: nn.Module) -> None:
    wanted = answer(net)
    modernise(net)
    torch.testing.assert_close(answer(net), wanted)
    net.train()(IMAGES).square().mean().backward()
    copy.deepcopy(net)
    assert all(p.grad is not None for p in net.parameters())
    assert len(computed(net)) == 3


def test_the_exported_file_computes_no_weights(net: nn.Module, tmp_path: Path) -> None:
    made = to_onnx(net, tmp_path / "m.onnx", IMAGES)
    assert made.parity.optimised.sqnr_db > 80
    assert set(made.report.operators) == {"Conv", "Relu", "GlobalAveragePool", "Reshape", "Gemm"}
    assert len(computed(net)) == 3
    assert count_macs(net, IMAGES[:1]) == 8 * 8 * 27 * 16 + 6 * 6 * 144 * 16 + 16 * 5
    assert all(t.device.type == "cpu" for t in (net.a.weight, net.b.weight))  # type: ignore[union-attr]


def test_pruning_and_quantising_go_on_from_the_plain_weights(net: nn.Module) -> None:
    wanted = answer(net)
    quantised = compress.quantize(net, [IMAGES], target="onnxruntime")
    error = (answer(quantised) - wanted).norm() / wanted.norm()
    assert error < 0.05
    compress.prune(net, IMAGES[:1], macs=0.6)
    assert not computed(net)
    assert net.a.weight.shape[0] == 8  # type: ignore[index, union-attr]
    net.train()(IMAGES).square().mean().backward()


def test_a_bundle_knows_which_weights_were_folded(net: nn.Module) -> None:
    modernise(net)
    base = copy.deepcopy(net)
    assert "folded" not in changes.describe(net, base)
    fold(net)
    noted = json.loads(json.dumps(changes.describe(net, base)))
    assert noted["folded"] == ["a.weight", "b.weight", "fc.weight"]
    again = changes.load(changes.reshape(copy.deepcopy(base), noted), net.state_dict())
    assert torch.equal(answer(again), answer(net))
    with pytest.raises(UserError, match="expected names of weights that are computed"):
        changes.reshape(base, {"folded": ["norm.weight"]})
