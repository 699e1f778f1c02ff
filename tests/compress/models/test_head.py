"""Which layer gives the logits."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.compress import quantization
from vcompress.compress.data.loader import Data
from vcompress.compress.models.catalogue import build, make_spec, spec_from_json
from vcompress.compress.models.head import heads, note_head, replace_head
from vcompress.compress.stages import finetune
from vcompress.compress.training.config import Context

HEAD_FIRST = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.top = nn.Linear(8, num_classes)  # registered before what comes before it
        self.stem = nn.Conv2d(3, 8, 3)
        self.squeeze = nn.Linear(8, 3)  # as wide as the head of three classes
        self.widen = nn.Linear(3, 8)

    def forward(self, x):
        x = self.stem(x).relu().mean((2, 3))
        return self.top(self.widen(self.squeeze(x)).relu() + x)

class Scaled(nn.Linear):
    def forward(self, x):
        return 9 * nn.functional.linear(x, self.weight)

class Own(Net):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.top = Scaled(8, num_classes, bias=False)

    def forward(self, x):
        return self.top(self.stem(x).relu().mean((2, 3)))

def own(num_classes):
    return Own(num_classes)

def first(num_classes):
    return Net(num_classes)

def fixed():
    return Net(3)

def stubborn(num_classes):  # cannot be built without values
    assert float(torch.ones(1)) == 1
    return Net(num_classes)
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "head_nets.py").write_text(HEAD_FIRST)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import head_nets  # type: ignore[import-not-found]

    yield head_nets
    sys.modules.pop("head_nets", None)


def net(name: str, classes: int = 3, **options: Any) -> nn.Module:
    return build(make_spec(name, classes, (16, 16), **options))


@pytest.mark.usefixtures("nets")
def test_a_head_that_is_registered_first_is_found_by_the_number_of_classes() -> None:
    assert heads(net("head_nets:first"), 3) == ("top",)


@pytest.mark.usefixtures("nets")
@pytest.mark.parametrize("name", ["fixed", "stubborn"])
def test_a_network_that_cannot_be_built_twice_is_followed_back_from_its_output(name: str) -> None:
    model = net(f"head_nets:{name}")
    assert heads(model, 3, torch.randn(1, 3, 16, 16)) == ("top",)
    with pytest.raises(UserError, match=r"the 3 logits, was not found. Name it: --head PATH"):
        heads(model, 3)


@pytest.mark.usefixtures("nets")
def test_following_back_leaves_gradients_modes_and_weights_as_they_were() -> None:
    model = net("head_nets:fixed")
    model.stem.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    heads(model, 3, torch.randn(1, 3, 16, 16))
    assert model.training
    assert not model.stem.weight.requires_grad  # type: ignore[union-attr]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.usefixtures("nets")
def test_a_quantised_network_keeps_its_head_with_a_record_and_without() -> None:
    for name in ("first", "fixed"):
        model = net(f"head_nets:{name}").eval()
        example = torch.randn(4, 3, 16, 16)
        made = quantization.prepare(model, example[:1], target="onnxruntime")
        quantization.calibrate(made, [example])
        assert heads(made, 3, example) == ("top",)
        again = quantization.restore(model, quantization.placement(made))
        assert getattr(again, "head_paths", None) == getattr(model, "head_paths", None)


@pytest.mark.usefixtures("nets")
def test_freezing_the_backbone_trains_the_head_alone(
    tiny_data: Callable[..., Data], tmp_path: Path
) -> None:
    for name in ("first", "fixed"):
        model = net(f"head_nets:{name}")
        before = copy.deepcopy(model.state_dict())
        config = finetune.Config(epochs=1, batch_size=8, lr=0.1, freeze="backbone")
        finetune.apply(model, config, Context(tiny_data(), tmp_path / name))
        moved = {k for k, v in model.state_dict().items() if not torch.equal(before[k], v)}
        assert moved == {"top.weight", "top.bias"}


@pytest.mark.usefixtures("nets")
def test_a_head_that_the_user_names_wins_and_stays_with_the_spec() -> None:
    spec = make_spec("head_nets:first", 3, (16, 16), head="squeeze")
    assert heads(build(spec), 3, torch.randn(1, 3, 16, 16)) == ("squeeze",)
    assert spec_from_json(spec.to_json(), "here", "head_nets:first") == spec
    assert "head" not in make_spec("head_nets:first", 3, (16, 16)).to_json()


@pytest.mark.usefixtures("nets")
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("tops", r"the head 'tops' is no layer of the network. Did you mean 'top'"),
        ("", r"the head '' is no layer"),
        ("widen", r"widen is a Linear with 8 outputs; expected the layer that gives the 3 logits"),
    ],
)
def test_a_head_that_cannot_be_one_is_refused(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        net("head_nets:first", head=path)


@pytest.mark.usefixtures("nets")
def test_a_new_head_takes_the_place_of_the_old_one() -> None:
    model = net("head_nets:first")
    replace_head(model, 3, 5)
    assert heads(model, 5) == ("top",)
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 5)
    with pytest.raises(UserError, match="The head 0 is a LayerNorm; it cannot be replaced"):
        norm = nn.Sequential(nn.LayerNorm(3))
        note_head(norm, ["0"], 3)
        replace_head(norm, 3, 5)


@pytest.mark.usefixtures("nets")
def test_a_head_of_the_users_own_class_is_taken_from_a_network_for_the_new_classes() -> None:
    model, wider = net("head_nets:own"), net("head_nets:own", 5)
    before = model.stem.weight
    replace_head(
        model,
        3,
        5,
        torch.randn(1, 3, 16, 16),
        lambda n: net("head_nets:own", n) if n == 3 else wider,
    )
    assert type(model.top) is type(wider.top)
    assert model.stem.weight is before
    images = torch.randn(2, 3, 16, 16)
    wanted = 9 * nn.functional.linear(model.stem(images).relu().mean((2, 3)), wider.top.weight)  # type: ignore[operator, arg-type]
    torch.testing.assert_close(model(images), wanted)
    narrow = net("head_nets:own")
    narrow.top.weight = nn.Parameter(torch.ones(3, 4))  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"top is a Scaled; it cannot be replaced. Start from"):
        replace_head(narrow, 3, 5, None, lambda n: net("head_nets:own", n))


def test_outputs_of_two_heads_that_are_averaged_have_two() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.head_dist = nn.Linear(12, 4), nn.Linear(12, 4)
            self.stem = nn.Linear(12, 12)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x.flatten(1))
            return (self.head(x) + self.head_dist(x)) / 2

    assert heads(Two(), 4, torch.randn(1, 3, 2, 2)) == ("head", "head_dist")


def test_timm_and_torchvision_heads_are_those_that_the_libraries_record() -> None:
    pytest.importorskip("timm")
    with torch.device("meta"):
        for name, path in (
            ("timm:deit_tiny_distilled_patch16_224", ("head", "head_dist")),
            ("timm:convnext_atto", ("head.fc",)),
            ("timm:mobilenetv3_small_050", ("classifier",)),
            ("squeezenet1_1", ("classifier.1",)),
            ("vit_b_16", ("heads.head",)),
            ("swin_t", ("head",)),
            ("densenet121", ("classifier",)),
        ):
            # 96 and 128 are widths inside of some of them
            for classes in (96, 128):
                assert heads(build(make_spec(name, classes, (224, 224))), classes) == path
