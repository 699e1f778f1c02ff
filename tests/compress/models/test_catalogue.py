"""Names to networks, and what a bundle may name."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vcompress.bench.errors import EnvironmentLacks, UserError
from vcompress.compress.models.catalogue import ALIASES, build, make_spec, spec_from_json
from vcompress.compress.models.head import heads
from vcompress.compress.models.outputs import check_forward

LIGHT = ("r18", "mnv2", "mnv3s", "mnv3l", "effb0", "shuf1", "sqz")


def counted(alias: str, classes: int = 10, size: tuple[int, int] = (224, 224)) -> nn.Module:
    if alias.startswith("timm:") or ALIASES.get(alias, "").startswith("timm:"):
        pytest.importorskip("timm")
    with torch.device("meta"):  # shapes only: all of them in seconds
        return build(make_spec(alias, classes, size))


@pytest.mark.parametrize("alias", [a for a in ALIASES if a not in LIGHT])
def test_every_alias_builds_for_ten_classes(alias: str) -> None:
    model = counted(alias)
    (name,) = heads(model, 10)
    module = model.get_submodule(name)
    assert getattr(module, "out_features", getattr(module, "out_channels", None)) == 10
    if alias not in ("vits16", "vitb16", "vitb32", "swint", "swins"):  # those take real values
        assert model.eval()(torch.zeros(1, 3, 64, 64, device="meta")).shape == (1, 10)


@pytest.mark.parametrize("alias", LIGHT)
def test_a_light_alias_gives_finite_logits_for_small_images(alias: str) -> None:
    torch.manual_seed(0)
    model = build(make_spec(alias, 10, (32, 32))).eval()
    example = torch.randn(1, 3, 32, 32)
    check_forward(model, example, 10)
    assert torch.isfinite(model(example)).all()


def test_parameters_are_those_of_the_papers() -> None:
    for alias, millions in (("r50", 25.557), ("r18", 11.690), ("mnv2", 3.505), ("vitb16", 86.568)):
        model = counted(alias, 1000)
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=1e-3)


def test_the_seed_alone_decides_the_weights() -> None:
    spec = make_spec("sqz", 4, (32, 32))
    torch.manual_seed(3)
    one = build(spec).state_dict()
    torch.manual_seed(3)
    two = build(spec).state_dict()
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("r81", "r18"),
        ("resnet51", "resnet5"),
        ("mobilenetv2", "mobilenet_v2"),
        ("vitb61", "vitb16"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        make_spec(name, 10, (32, 32))
    message = str(caught.value)
    assert message.startswith(f"unknown model {name!r}. Did you mean '{hint}")
    assert (
        "timm:NAME, hf:NAME, HEAD+BACKBONE such as deeplabv3+r18, module:factory, or a bundle"
        in message
    )


def test_a_timm_name_builds_and_a_wrong_one_suggests_the_nearest() -> None:
    pytest.importorskip("timm")
    model = build(make_spec("timm:resnet18", 7, (64, 64))).eval()
    check_forward(model, torch.zeros(1, 3, 64, 64), 7)
    assert heads(model, 7) == ("fc",)
    assert make_spec("timm:resnet18", 7, (64, 64)).kwargs == {}
    assert make_spec("timm:vit_tiny_patch16_224", 7, (64, 64)).kwargs == {"img_size": 64}
    with pytest.raises(
        UserError, match=r"unknown model 'timm:resnet81'. Did you mean 'timm:resnet"
    ):
        make_spec("timm:resnet81", 7, (64, 64))


def test_timm_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(EnvironmentLacks, match=r"timm:resnet18 needs timm: pip install"):
        make_spec("timm:resnet18", 7, (64, 64))


def test_a_factory_of_the_users_own_is_found_in_the_working_directory(tiny_nets: Any) -> None:
    spec = make_spec("tiny_nets:group", 5, (16, 16))
    model = build(spec)
    assert spec.name == "tiny_nets:group"
    check_forward(model, torch.zeros(1, 3, 16, 16), 5)
    assert heads(model, 5) == ("5",)


def test_a_factory_gets_the_size_under_the_name_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sized_nets.py").write_text(
        "from torch import nn\n"
        "def one(num_classes, img_size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3 * img_size ** 2, num_classes))\n"
        "def two(num_classes, input_size):\n"
        "    h, w = input_size\n"
        "    assert isinstance(input_size, tuple)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3 * h * w, num_classes))\n"
        "def none(): return nn.Flatten()\n"
        "def wrong(num_classes): return 5\n"
        "value = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, kwargs in (("one", {"img_size": 8}), ("two", {"input_size": (8, 8)})):
        spec = make_spec(f"sized_nets:{name}", 5, (8, 8))
        assert spec.kwargs == kwargs
        check_forward(build(spec), torch.zeros(1, 3, 8, 8), 5)
    flat = build(make_spec("sized_nets:none", 5, (8, 8)))
    with pytest.raises(
        UserError, match=r"gives \[1, 192\] for one image; expected logits \[1, 5\]"
    ):
        check_forward(flat, torch.zeros(1, 3, 8, 8), 5)
    with pytest.raises(UserError, match=r"returned int, expected a torch nn.Module"):
        build(make_spec("sized_nets:wrong", 5, (8, 8)))
    with pytest.raises(UserError, match=r"has no function 'ones'. Did you mean 'one'"):
        make_spec("sized_nets:ones", 5, (8, 8))
    with pytest.raises(UserError, match=r"has no function 'value'"):
        make_spec("sized_nets:value", 5, (8, 8))
    sys.modules.pop("sized_nets")


def test_a_rectangle_reaches_every_name_that_a_factory_has_for_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flat_nets.py").write_text(
        "from torch import nn\n"
        "def flat(size, classes):\n"
        "    assert isinstance(size, tuple), size\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size[0] * size[1], classes))\n"
        "def a(num_classes, img_size=224): return flat(img_size, num_classes)\n"
        "def b(num_classes, image_size=224): return flat(image_size, num_classes)\n"
        "def c(num_classes, input_size=(224, 224)): return flat(input_size, num_classes)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in "abc":
        spec = make_spec(f"flat_nets:{name}", 5, (4, 8))
        read = spec_from_json(json.loads(json.dumps(spec.to_json())), "here", spec.name)
        for one in (spec, read):
            check_forward(build(one), torch.zeros(1, 3, 4, 8), 5)
    sys.modules.pop("flat_nets")


def test_a_vit_of_timm_takes_a_rectangle() -> None:
    pytest.importorskip("timm")
    model = build(make_spec("timm:vit_tiny_patch16_224", 3, (32, 64)))
    check_forward(model, torch.zeros(1, 3, 32, 64), 3)
    assert model.pos_embed.shape == (1, 9, 192)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "name", [":make", ".rel:make", "a..b:make", "no_such_module:make", "a b:c"]
)
def test_a_module_that_cannot_be_one_is_named(name: str) -> None:
    with pytest.raises(UserError, match=r"is not a module's name|cannot be imported"):
        make_spec(name, 5, (8, 8))


def test_an_image_size_that_does_not_fit_is_named() -> None:
    spec = make_spec("vitb16", 10, (30, 30))
    with pytest.raises(UserError, match=r"vit_b_16 cannot be built with .*image_size"):
        build(spec)
    with pytest.raises(UserError, match="takes square images; got 32 x 64"):
        make_spec("vitb16", 10, (32, 64))
    model = nn.Sequential(nn.Conv2d(3, 4, 9), nn.Flatten())
    with pytest.raises(UserError, match=r"fails on an input \[1, 3, 4, 4\].*--image-size"):
        check_forward(model, torch.zeros(1, 3, 4, 4), 10)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "odd_nets:run", "classes": 3, "kwargs": {}}, "Loading runs that code"),
        ({"name": "odd_nets:run", "classes": 3, "kwargs": {}}, "--trust odd_nets:run"),
        (
            {"name": "resnet18", "classes": 3, "kwargs": {"weights": "x"}},
            "'weights' is not allowed",
        ),
        ({"name": "resnet18", "classes": 0, "kwargs": {}}, "classes = 0; expected 1 to 1,000,000"),
        ({"name": "resnet18", "classes": 10**9, "kwargs": {}}, "expected 1 to 1,000,000"),
        ({"name": "resnet18", "classes": "3", "kwargs": {}}, "classes = '3'"),
        ({"name": "vit_b_16", "classes": 3, "kwargs": {"image_size": 10**6}}, "an image size of"),
        ({"name": "vit_b_16", "classes": 3, "kwargs": {"image_size": "x"}}, "an image size of"),
        ({"name": "resnet18", "classes": 3, "kwargs": {"in_chans": 0}}, "channels are not 1 to"),
        ({"name": "resnet18", "classes": 3, "kwargs": {"in_chans": 10**6}}, "channels are not 1"),
        ({"name": "resnet18", "classes": 3, "kwargs": []}, "kwargs"),
        ({"name": "resnet18", "classes": 3, "kwargs": {}, "x": 1}, "unknown key 'x'"),
        ({"name": "resnet18", "classes": 3}, "is missing"),
        ({"name": 5, "classes": 3, "kwargs": {}}, "name = 5"),
        ([], "expected a table"),
        (None, "expected a table"),
    ],
)
def test_a_bundle_may_name_harmless_architectures_only(data: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        spec_from_json(data, "architecture.json", trusted_factory="tiny_nets:group")
    assert message in str(caught.value)
    assert "architecture.json" in str(caught.value)


def test_a_head_that_takes_all_memory_is_refused_before_it_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vcompress.compress.models.catalogue.memory_limit", lambda: 2 * 10**9)
    # squeezenet1_1: 722,496 weights, and 512 with a bias for a class; twice, four bytes each.
    with pytest.raises(UserError, match=r"1,000,000 classes needs 4\.1 GB .* may have 2\.0 GB"):
        build(make_spec("sqz", 10**6, (64, 64)))
    model = build(make_spec("sqz", 30_000, (64, 64)))
    assert sum(p.numel() for p in model.parameters()) == 722_496 + 30_000 * 513


@pytest.mark.parametrize("name", ["subprocess:run", "os:system"])
def test_a_bundle_may_not_name_pythons_own_modules_though_they_are_trusted(name: str) -> None:
    data = {"name": name, "classes": 3, "kwargs": {}}
    with pytest.raises(UserError, match=f"refused: {name}: .* is a module of Python's own"):
        spec_from_json(data, "architecture.json")
    with pytest.raises(UserError, match=f"{name}: .* is a module of Python's own"):
        build(spec_from_json(data, "architecture.json", name))


def test_a_spec_comes_back_and_the_users_own_only_when_trusted() -> None:
    spec = make_spec("vitb16", 10, (32, 32))
    assert spec_from_json(spec.to_json(), "here") == spec
    own = {"name": "tiny_nets:group", "classes": 3, "kwargs": {}}
    assert spec_from_json(own, "here", "tiny_nets:group").name == "tiny_nets:group"
    with pytest.raises(UserError, match="--trust tiny_nets:group"):
        spec_from_json(own, "here", "tiny_nets:other")


# Weights to start from


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import urllib.request
    from urllib.error import URLError

    def refuse(*_: object, **__: object) -> None:
        raise URLError("no network here")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


@pytest.mark.usefixtures("offline")
def test_pretrained_weights_offline_say_what_is_missing_and_what_to_do() -> None:
    with pytest.raises(EnvironmentLacks) as caught:
        build(make_spec("sqz", 10, (32, 32)), "default")
    assert caught.value.status == 4
    for part in ("squeezenet1_1-b8a52dc0.pth", "no network here", "--weights FILE.safetensors"):
        assert part in str(caught.value)


def test_pretrained_weights_of_an_own_network_are_refused(tiny_nets: Any) -> None:
    with pytest.raises(UserError, match=r"tiny_nets:group is your own network. Give a file"):
        build(make_spec("tiny_nets:group", 3, (16, 16)), "default")


def test_pretrained_weights_are_taken_but_for_the_head(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from vcompress.compress.models import catalogue

    torch.manual_seed(1)
    source = build(make_spec("sqz", 1000, (64, 64))).state_dict()
    monkeypatch.setattr(catalogue, "_pretrained", lambda spec: dict(source))
    with caplog.at_level(logging.WARNING, "vcompress"):
        model = build(make_spec("sqz", 10, (64, 64)), "default")
        assert torch.equal(model.state_dict()["features.0.weight"], source["features.0.weight"])
        assert caplog.records == []
        source["features.0.weight"] = source["features.0.weight"][:, :1]
        build(make_spec("sqz", 10, (64, 64)), "default")
    assert "start anew: ['features.0.weight']" in caplog.text


def test_a_file_with_another_head_gives_all_but_the_head(
    tiny_nets: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tiny_nets.group(num_classes=7)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    spec = make_spec("tiny_nets:group", 3, (16, 16))
    with caplog.at_level(logging.INFO, "vcompress"):
        model = build(spec, str(tmp_path / "w.pth"))
    assert torch.equal(model[0].weight, source[0].weight)  # type: ignore[index]
    assert model[5].weight.shape == (3, 32)  # type: ignore[index]
    assert "so 5 starts anew" in caplog.text


def test_a_file_with_another_layer_than_the_head_is_refused(
    tiny_nets: Any, tmp_path: Path, image_folder: Callable[..., Path]
) -> None:
    tensors = tiny_nets.group().state_dict()
    tensors["0.weight"] = tensors["0.weight"][:, :1].clone()
    torch.save(tensors, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"the first is 0.weight: \[8, 1, 3, 3\] in the file"):
        build(make_spec("tiny_nets:group", 3, (16, 16)), str(tmp_path / "w.pth"))
