"""A checkpoint from elsewhere becomes a bundle's network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from vcompress.bench.bundle import Preprocess
from vcompress.bench.data.dataset import Dataset
from vcompress.bench.errors import UserError
from vcompress.compress.bundles.store import Network
from vcompress.compress.data.loader import Data
from vcompress.compress.delivery.import_checkpoint import _from_file, two_logits
from vcompress.compress.models.catalogue import build, make_spec
from vcompress.compress.options import Options

SIZE = Preprocess((16, 16))
EXAMPLE = torch.randn(1, 3, 16, 16)
NETS = """
from torch import nn


class Bilinear(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.stem, self.top = nn.Conv2d(3, 8, 3), nn.Linear(8, n)

    def forward(self, x):
        x = self.top(self.stem(x).relu().mean((2, 3)))
        return x - x.mean(1, keepdim=True) if x.shape[1] > 1 else x * 3


def centred(num_classes): return Bilinear(num_classes)
def fixed(): return Bilinear(4)
"""


@pytest.fixture
def nets(tiny_nets: Any, tmp_path: Path) -> Any:
    (tmp_path / "import_nets.py").write_text(NETS)
    return tiny_nets


def found(name: str, file: Path, **options: Any) -> Network:
    return _from_file(name, file, SIZE, Options(**options), None).network


def test_one_logit_becomes_two_with_the_same_probabilities(nets: Any, tmp_path: Path) -> None:
    source = nets.group(num_classes=1).eval()
    torch.save(source.state_dict(), tmp_path / "one.pth")
    network = found("tiny_nets:group", tmp_path / "one.pth")
    assert network.spec.classes == 2
    images = torch.randn(16, 3, 16, 16)
    torch.testing.assert_close(
        network.model.eval()(images).softmax(1)[:, 1], source(images).sigmoid()[:, 0]
    )
    # A number is no class.
    one = found("tiny_nets:group", tmp_path / "one.pth", task="regression")
    assert torch.equal(one.model.eval()(images), source(images))


def test_a_network_whose_two_logits_are_something_else_is_refused(nets: Any) -> None:
    spec = make_spec("import_nets:centred", 1, (16, 16))
    with pytest.raises(UserError, match="gives one logit, and for two classes it computes some"):
        two_logits(Network(build(spec), spec), ["top"], EXAMPLE)


def test_a_factory_of_fixed_classes_takes_its_own_file_and_no_other(
    nets: Any, tmp_path: Path
) -> None:
    import import_nets  # type: ignore[import-not-found]

    source = import_nets.fixed()
    torch.save(source.state_dict(), tmp_path / "four.pth")
    network = found("import_nets:fixed", tmp_path / "four.pth")
    assert network.spec.classes == 4
    assert torch.equal(network.model.get_parameter("top.bias"), source.top.bias)
    torch.save(import_nets.centred(7).state_dict(), tmp_path / "seven.pth")
    with pytest.raises(UserError, match=r"always gives 4 logits, and the head in .* has 7"):
        found("import_nets:fixed", tmp_path / "seven.pth")


def test_no_message_speaks_of_the_classes_of_the_probe(nets: Any, tmp_path: Path) -> None:
    torch.save(nets.group(num_classes=5).state_dict(), tmp_path / "five.pth")
    for options in ({"head": "0"}, {"head": "nothing"}, {"output": "x"}, {"checkpoint_key": "a"}):
        with pytest.raises(UserError) as caught:
            found("tiny_nets:group", tmp_path / "five.pth", **options)
        assert "1237" not in str(caught.value)
    for other in (nn.Linear(3, 2).state_dict(), {"5.weight": torch.ones(4, 9)}):
        torch.save(other, tmp_path / "other.pth")
        with pytest.raises(UserError) as caught:
            found("tiny_nets:group", tmp_path / "other.pth")
        assert "1237" not in str(caught.value)


@pytest.mark.parametrize("trained_with", [True, False])
def test_the_data_tell_whether_the_input_of_a_checkpoint_was_transformed(
    tmp_path: Path, trained_with: bool
) -> None:
    torch.manual_seed(0)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    preprocess = Preprocess(size=(32, 32))
    rows = np.arange(8)
    dataset = Dataset(
        "noise", ("a", "b", "c"), rows % 3, {"train": rows, "val": rows[:0], "test": rows[:0]}, "",
        lambda index: Image.fromarray(pixels[index]), preprocess,
    )  # fmt: skip
    data = Data(dataset, preprocess)
    net = torchvision.models.GoogLeNet(3, False, init_weights=False, transform_input=trained_with)
    net.conv1.bn.momentum = 1.0
    net.train().conv1(net._transform_input(data.images("train", 8)))
    torch.save(net.state_dict(), tmp_path / "net.pth")
    network = _from_file("googlenet", tmp_path / "net.pth", preprocess, Options(), data).network
    assert network.spec.kwargs["transform_input"] is trained_with
    assert network.model.transform_input is trained_with
