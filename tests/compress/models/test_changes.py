import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.compress.models.changes import (
    describe,
    load,
    load_tensors,
    reshape,
    save_tensors,
)
from vcompress.compress.pruning import prune


def rebuild(base: nn.Module, description: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    """As a bundle is opened."""
    return load(reshape(base, description), tensors, description.get("versions"))


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(images)).relu().mean((2, 3)))


def pruned() -> Tiny:
    torch.manual_seed(0)
    model = Tiny()
    prune(model, torch.randn(1, 3, 8, 8), macs=0.5)
    return model


def test_a_pruned_network_comes_back_bit_for_bit_from_json_and_safetensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tv.resnet18(weights=None, num_classes=10)
    prune(model, torch.randn(1, 3, 32, 32), macs=0.5)
    description = json.loads(json.dumps(describe(model, tv.resnet18(weights=None, num_classes=10))))
    save_tensors(model, tmp_path / "weights.safetensors")
    again = rebuild(
        tv.resnet18(weights=None, num_classes=10),
        description,
        load_tensors(tmp_path / "weights.safetensors"),
    )
    for (name, one), (other_name, other) in zip(
        model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert name == other_name and torch.equal(one, other)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(images), again.eval()(images))


def test_mnasnet_keeps_its_version_or_it_would_be_rebuilt_as_an_old_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tv.mnasnet0_5(weights=None)
    prune(model, torch.randn(1, 3, 64, 64), macs=0.5)
    description = describe(model, tv.mnasnet0_5(weights=None))
    assert description["versions"][""] == 2
    save_tensors(model, tmp_path / "w.safetensors")
    again = rebuild(
        tv.mnasnet0_5(weights=None), description, load_tensors(tmp_path / "w.safetensors")
    )
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.eval()(images), again.eval()(images))


def test_a_network_that_was_pruned_twice_is_described_against_the_first_architecture() -> None:
    model = pruned()
    prune(model, torch.randn(1, 3, 8, 8), macs=0.99, round_to=1)
    again = rebuild(Tiny(), describe(model, Tiny()), model.state_dict())
    assert again.conv.out_channels == model.conv.out_channels < 8
    images = torch.randn(1, 3, 8, 8)
    assert torch.equal(model.eval()(images), again.eval()(images))


def test_tied_and_channels_last_tensors_survive_the_file(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(4, 4, 3)
            self.second = nn.Conv2d(4, 4, 3)
            self.second.weight = self.first.weight

    model = Tied().to(memory_format=torch.channels_last)
    save_tensors(model, tmp_path / "w.safetensors")
    # two biases of 4 and one weight of 144 floats, and the header
    assert (tmp_path / "w.safetensors").stat().st_size < 144 * 4 * 2
    again = load(Tied(), load_tensors(tmp_path / "w.safetensors"))
    assert again.first.weight is again.second.weight
    assert torch.equal(again.first.weight, model.first.weight)


def test_a_network_of_another_architecture_cannot_be_described() -> None:
    other = Tiny()
    other.norm = nn.GroupNorm(4, 16)  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"'norm' is GroupNorm .* BatchNorm2d"):
        describe(other, Tiny())


class Counting(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.tensor(0))


def test_a_tensor_that_has_grown_is_named_with_both_shapes_and_what_to_do() -> None:
    model = Counting()
    model.calls = torch.zeros(8)
    message = r"buffer 'calls' has the shape \[8\].*builds it with \[\].*persistent=False"
    with pytest.raises(UserError, match=message):
        describe(model, Counting())
    wider = Tiny()
    wider.head = nn.Linear(16, 5)
    message = r"parameter 'head.weight' has the shape \[5, 16\].*builds it with \[4, 16\]"
    with pytest.raises(UserError, match=message):
        describe(wider, Tiny())
    with pytest.raises(UserError, match=r"Shape \[8\] for 'calls': expected \[\], a single number"):
        reshape(Counting(), {"shapes": {"calls": [8]}})


GOOD = {"attributes": {"conv": {"out_channels": 8}}, "shapes": {}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([], "description is a table"),
        ({"code": "import os"}, "Unknown key 'code'"),
        ({"attributes": {"conv9": {"out_channels": 8}}}, "names module 'conv9'.*'conv'"),
        ({"attributes": {"conv": {"__class__": 8}}}, "not a number of that module"),
        ({"attributes": {"conv": {"_modules": 8}}}, "not a number of that module"),
        ({"attributes": {"conv": {"forward": 8}}}, "not a number of that module"),
        ({"attributes": {"conv": {"padding_mode": 8}}}, "not a number of that module"),
        ({"attributes": {"conv": {"out_channels": "8"}}}, "expected numbers like 16"),
        ({"attributes": {"conv": {"out_channels": True}}}, "expected numbers like 16"),
        ({"attributes": {"conv": {"out_channels": 10**9}}}, "from 0 to 16"),
        ({"attributes": {"conv": {"out_channels": -8}}}, "from 0 to 16"),
        ({"attributes": {"conv": {"stride": [1]}}}, "1 entries, expected 2"),
        ({"attributes": {"norm": {"eps": float("nan")}}}, "finite"),
        ({"attributes": {"conv": 8}}, "must be a table"),
        ({"shapes": {"conv.weight": [10**12, 3, 3, 3]}}, "expected from 1 to"),
        ({"shapes": {"conv.weight": [8, 3, 3]}}, "expected from 1 to"),
        ({"shapes": {"conv.weight": [0, 3, 3, 3]}}, "expected from 1 to"),
        ({"shapes": {"conv.wait": [8]}}, "names tensor 'conv.wait'"),
        ({"shapes": {"conv.weight": [8, 3, 3, 3]}}, "ask for weights of"),
        ({"attributes": {"conv": {"out_channels": 8}}}, "ask for weights of"),
        ({"attributes": {"conv": {"groups": 0}}}, "divide by 0 groups"),
        ({"identities": [""]}, "drops the whole network"),
        ({"identities": "conv"}, "list of module paths"),
        ({"identities": ["conv9"]}, "names module 'conv9'"),
    ],
)
def test_a_hostile_description_is_refused(change: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        reshape(Tiny(), change)


def test_weights_that_do_not_fit_are_refused() -> None:
    model = pruned()
    description = describe(model, Tiny())
    tensors = dict(model.state_dict())
    short = {name: t for name, t in tensors.items() if name != "conv.bias"}
    with pytest.raises(UserError, match=r"1 missing \(conv.bias\)"):
        rebuild(Tiny(), description, short)
    with pytest.raises(UserError, match="1 left over"):
        rebuild(Tiny(), description, {**tensors, "extra": torch.zeros(1)})
    with pytest.raises(UserError, match="another network"):
        rebuild(Tiny(), description, dict(Tiny().state_dict()))
    with pytest.raises(UserError, match="another network"):
        rebuild(Tiny(), description, {n: t.half() for n, t in tensors.items()})


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load_tensors(tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load_tensors(tmp_path / "none.safetensors")


def test_a_dropped_block_comes_back_as_an_identity() -> None:
    model = tv.resnet18(weights=None, num_classes=4)
    model.layer2[1] = nn.Identity()
    description = describe(model, tv.resnet18(weights=None, num_classes=4))
    assert description["identities"] == ["layer2.1"]
    again = rebuild(tv.resnet18(weights=None, num_classes=4), description, model.state_dict())
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(copy.deepcopy(model).eval()(images), again.eval()(images))


def test_a_module_under_two_names_is_cut_and_comes_back() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(16, 16, 1) for _ in range(6))
            self.one = self.two = nn.BatchNorm2d(16)
            self.head = nn.Conv2d(16, 4, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            for conv in self.convs:
                images = self.two(conv(self.one(images)))
            return self.head(images)  # type: ignore[no-any-return]

    model = nn.Sequential(nn.Conv2d(3, 16, 1), Twice()).eval()
    base = copy.deepcopy(model)
    prune(model, torch.randn(1, 3, 4, 4), channels=0.5)
    again = reshape(copy.deepcopy(base), describe(model, base))
    again.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 4, 4)
    assert again[1].one is again[1].two and again[1].one.num_features == 8
    assert torch.equal(again.eval()(images), model(images))
