"""Networks that give several outputs, and networks that fail."""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.compress.data.loader import Data
from vcompress.compress.models.catalogue import build, make_spec, spec_from_json
from vcompress.compress.models.changes import describe, load, reshape
from vcompress.compress.models.head import replace_head
from vcompress.compress.models.outputs import check_forward, choose, choosing, mean_loss, run
from vcompress.compress.pipeline.resolve import with_output
from vcompress.compress.stages import finetune
from vcompress.compress.training.config import Context

EXAMPLE = torch.zeros(1, 3, 16, 16)

NETS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes, gives="both"):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.fc, self.aux = nn.Linear(16, num_classes), nn.Linear(16, num_classes)
        self.gives = gives

    def forward(self, x):
        early = self.stem(x)
        late = self.body(early).mean((2, 3))
        y, z = self.fc(late), self.aux(early.mean((2, 3)))
        if self.gives == "dict":
            return {"features": late, "logits": y}
        if self.gives == "tuple":
            return y, late
        if self.gives == "aux":
            return (y, z) if self.training else y
        return (y, z) if self.training else (y + z) / 2


def dictionary(num_classes=3): return Net(num_classes, "dict")
def tuple_(num_classes=3): return Net(num_classes, "tuple")
def aux(num_classes=3): return Net(num_classes, "aux")
def both(num_classes=3): return Net(num_classes)


class Two(nn.Module):
    def forward(self, images, mask):
        return images


class Key(nn.Module):
    def forward(self, images):
        return {"a": 1}["depth"]


def two_inputs(num_classes=3): return Two()
def key(num_classes=3): return Key()
def config(num_classes=3): return {"a": 1}["width"]
def lazy(num_classes=3):
    import no_such_module
"""


@pytest.fixture(autouse=True)
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "output_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("output_nets", None)


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build(make_spec(f"output_nets:{name}", 3, (16, 16)))


class Gives(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: Tensor) -> Any:
        return self.value


@dataclass
class Output:
    loss: None
    scores: Tensor


def test_the_first_tensor_counts_and_another_is_named() -> None:
    a, b = torch.ones(1, 2), torch.ones(1, 3)
    pair = namedtuple("pair", "x y")(a, b)
    for value, first, names in (
        (a, None, ()), ((a, b), "0", ("0", "1")), ([None, b], "1", ("1",)),
        ({"x": a, "y": b}, "x", ("x", "y")), ({"y": b, "out": a}, "out", ("y", "out")),
        (pair, "x", ("x", "y")), (Output(None, b), "scores", ("scores",)),
    ):  # fmt: skip
        assert choose(Gives(value), EXAMPLE, None) == first
        for name in names:
            assert choose(Gives(value), EXAMPLE, name) == name
    with pytest.raises(UserError, match=r"--output z: .*x \[1, 2\], y \[1, 3\]. Name one"):
        choose(Gives({"x": a, "y": b}), EXAMPLE, "z")
    with pytest.raises(UserError, match=r"one output without a name. Leave --output out"):
        choose(Gives(a), EXAMPLE, "x")
    with pytest.raises(UserError, match="gives a NoneType; expected a tensor"):
        choose(Gives(None), EXAMPLE, None)


def test_a_network_that_chooses_keeps_its_names_its_copies_and_what_it_computes() -> None:
    plain = made("dictionary").eval()
    images = torch.randn(2, 3, 16, 16)
    wanted = plain(images)["logits"]
    chosen = choosing(copy.deepcopy(plain), "logits")
    assert list(chosen.state_dict()) == list(plain.state_dict())
    assert type(chosen).__name__ == "Net"
    for net in (chosen, copy.deepcopy(chosen)):
        assert torch.equal(net(images), wanted)
    assert type(choosing(made("dictionary"), "logits")) is type(chosen)


def test_the_output_is_recorded_with_the_architecture() -> None:
    spec = make_spec("output_nets:dictionary", 3, (16, 16))
    network = with_output(build(spec), spec, EXAMPLE, "logits")
    read = spec_from_json(network.spec.to_json(), "here", "output_nets:dictionary")
    assert read.output == "logits"
    check_forward(build(read), EXAMPLE, 3)
    network = with_output(build(spec), spec, EXAMPLE, None)
    assert network.spec.output == "features"
    with pytest.raises(UserError, match=r"gives \[1, 16\] for one image; .*--output NAME"):
        check_forward(network.model, EXAMPLE, 3)


def test_the_chosen_output_is_pruned_quantised_and_exported(tmp_path: Path) -> None:
    import numpy as np
    import onnxruntime

    from vcompress import compress, export

    for name, output, key in (("tuple_", "0", 0), ("dictionary", "logits", "logits")):
        plain = made(name)
        net = choosing(copy.deepcopy(plain), output).eval()
        images = torch.randn(32, 3, 16, 16)
        file = export.to_onnx(net, tmp_path / "net.onnx", images[:4]).path
        got = onnxruntime.InferenceSession(file).run(None, {"input": images.numpy()})[0]
        wanted = plain.eval()(images)[key].detach().numpy()
        np.testing.assert_allclose(got, wanted, atol=1e-5)
        report = compress.prune(net, images[:1], macs=0.8)
        assert report.achieved["macs"] <= 0.8
        quantised = compress.quantize(net, [images], target="onnxruntime")
        assert quantised.eval()(images).shape == (32, 3)


def test_every_output_in_training_is_trained_on_and_features_are_not() -> None:
    logits = [torch.randn(4, 3, requires_grad=True) for _ in range(2)]
    features = torch.randn(4, 8)
    square = lambda x: x.square().mean()  # noqa: E731
    for outputs in ((*logits, features), {"a": logits[0], "f": features, "b": logits[1]}):
        found = mean_loss(outputs, square)
        wanted = sum(float(square(x.detach())) for x in logits) / 2
        assert float(found.detach()) == pytest.approx(wanted)
    assert torch.equal(mean_loss(logits[0], square), square(logits[0]))
    assert torch.equal(mean_loss((logits[0], features), square), square(logits[0]))
    with pytest.raises(UserError, match="gives a dict without tensors"):
        mean_loss({}, square)


@pytest.mark.parametrize("name", ["both", "aux"])
def test_a_network_with_two_heads_in_training_learns_with_both(
    tiny_data: Callable[..., Data], tmp_path: Path, name: str
) -> None:
    model = made(name)
    before = copy.deepcopy(model.state_dict())
    config = finetune.Config(epochs=6, batch_size=8, lr=0.05)
    details = finetune.apply(model, config, Context(tiny_data(), tmp_path / "work")).details
    assert details["val_score"] >= 0.9
    for layer in ("fc.weight", "aux.weight"):
        assert not torch.equal(model.state_dict()[layer], before[layer])


@pytest.mark.parametrize("name", ["both", "aux"])
def test_auxiliary_heads_follow_the_head_to_other_classes(name: str, tmp_path: Path) -> None:
    def of(classes: int) -> nn.Module:
        return build(make_spec(f"output_nets:{name}", classes, (16, 16)))

    model = made(name)
    stem = model.stem[0].weight.clone()  # type: ignore[index, union-attr, operator]
    torch.save(model.state_dict(), tmp_path / "c.pth")
    replace_head(model, 3, 5, EXAMPLE, of)
    assert [model.fc.out_features, model.aux.out_features] == [5, 5]  # type: ignore[union-attr]
    load(reshape(of(5), describe(model, of(5))), model.state_dict())
    started = build(make_spec(f"output_nets:{name}", 7, (16, 16)), str(tmp_path / "c.pth"))
    assert torch.equal(started.stem[0].weight, stem)  # type: ignore[index, union-attr]
    assert started.aux.out_features == 7  # type: ignore[union-attr]


# What fails


def test_the_users_own_line_is_shown_where_a_network_fails() -> None:
    with pytest.raises(UserError, match=r"wants more than the images: 'mask' has no value"):
        run(made("two_inputs"), EXAMPLE, "output_nets:two_inputs")
    with pytest.raises(UserError) as caught:
        run(made("key"), EXAMPLE, "output_nets:key")
    assert "KeyError: 'depth' (output_nets.py, line " in str(caught.value)
    assert "--image-size" not in str(caught.value)
    with pytest.raises(UserError, match=r"KeyError: 'width' \(output_nets.py, line \d+"):
        made("config")
    with pytest.raises(UserError, match=r"No module named 'no_such_module' \(output_nets.py, line"):
        made("lazy")


def test_the_message_blames_what_is_wrong() -> None:
    grey = nn.Sequential(OrderedDict(stem=nn.Conv2d(1, 4, 3)))
    with pytest.raises(UserError, match=r"takes images of 1 channels, .* gives 3: .* in stem"):
        run(grey, EXAMPLE)
    half = nn.Sequential(nn.Conv2d(3, 4, 3)).half()
    with pytest.raises(UserError, match=r"no float32 network: .* in 0 \(Conv2d\).*net.float\(\)"):
        run(half, EXAMPLE)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(UserError, match=r"in 1 \(Linear\): RuntimeError: .*--image-size"):
        run(flat, EXAMPLE)
    with pytest.raises(UserError, match=r"gives tuple of 0 \[1, 2\], 1 \[1, 5\] for one image"):
        check_forward(Gives((torch.ones(1, 2), torch.ones(1, 5))), EXAMPLE, 3)
