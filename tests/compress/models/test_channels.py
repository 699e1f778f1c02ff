"""Networks for images of one or four channels."""

from __future__ import annotations

import inspect
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vcompress.compress.models import catalogue
from vcompress.compress.models.catalogue import build, make_spec, spec_from_json
from vcompress.compress.models.channels import argument, fitted
from vcompress.compress.models.outputs import check_forward

SIZE = (32, 32)


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_a_kernel_is_fitted_as_timm_does_it(channels: int) -> None:
    manipulate = pytest.importorskip("timm.models._manipulate")
    weight = torch.randn(8, 3, 3, 3)
    own = {"stem.weight": torch.zeros(8, channels, 3, 3), "other.weight": torch.zeros(2, 2)}
    tensors = {"stem.weight": weight, "other.weight": torch.ones(2, 2)}
    found = fitted(tensors, own)
    wanted = manipulate.adapt_input_conv(channels, weight.clone())
    torch.testing.assert_close(found["stem.weight"], wanted)
    assert found["other.weight"] is tensors["other.weight"]


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", ["sqz", "timm:resnet10t", "hf:convnext-tiny", "tiny_nets:group"])
def test_a_network_for_three_channels_is_built_for_others(
    tiny_nets: Any, name: str, channels: int
) -> None:
    if ":" in name:
        pytest.importorskip(
            {"timm": "timm", "hf": "transformers"}.get(name.split(":", maxsplit=1)[0], "torch")
        )
    spec = make_spec(name, 5, SIZE, in_chans=channels)
    read = spec_from_json(json.loads(json.dumps(spec.to_json())), "here", name)
    for one in (spec, read):
        check_forward(build(one), torch.randn(1, channels, *SIZE), 5)
    first = next(m for m in build(read).modules() if isinstance(m, nn.Conv2d))
    assert first.in_channels == first.weight.shape[1] == channels


def test_three_channels_are_not_recorded() -> None:
    assert make_spec("sqz", 5, SIZE, in_chans=3).kwargs == {}


def test_a_grey_image_gives_what_it_gave_as_three_equal_channels(
    tiny_nets: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tiny_nets.group(num_classes=3).eval()
    torch.save(source.state_dict(), tmp_path / "rgb.pth")
    spec = make_spec("tiny_nets:group", 3, (16, 16), in_chans=1)
    with caplog.at_level(logging.WARNING, "vcompress"):
        model = build(spec, str(tmp_path / "rgb.pth")).eval()
    assert "0.weight: its weights over 3 channels are fitted to 1" in caplog.text
    images = torch.randn(4, 1, 16, 16)
    torch.testing.assert_close(model(images), source(images.repeat(1, 3, 1, 1)))


def test_pretrained_weights_are_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    source = build(make_spec("sqz", 1000, SIZE)).state_dict()
    monkeypatch.setattr(catalogue, "_pretrained", lambda spec: dict(source))
    model = build(make_spec("sqz", 10, SIZE, in_chans=1), "default")
    wanted = source["features.0.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(model.state_dict()["features.0.weight"], wanted)


def test_a_factory_is_told_the_channels_under_the_name_that_it_has() -> None:
    def timm_like(num_classes: int, in_chans: int = 3) -> None: ...
    def torch_like(num_classes: int, in_channels: int = 3) -> None: ...
    def must(num_classes: int, channels: int) -> None: ...
    def width(num_classes: int, channels: int = 64) -> None: ...

    for factory, of_three, of_one in (
        (timm_like, {}, {"in_chans": 1}), (torch_like, {}, {"in_channels": 1}),
        (must, {"channels": 3}, {"channels": 1}), (width, {}, {"in_chans": 1}),
    ):  # fmt: skip
        parameters = inspect.signature(factory).parameters
        assert argument(parameters, 3) == of_three
        assert argument(parameters, 1) == of_one


def test_a_network_that_was_built_for_one_channel_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "grey_nets.py").write_text(
        "from torch import nn\n"
        "def grey(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Conv2d(3, num_classes, 3),\n"
        "                         nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = build(make_spec("grey_nets:grey", 5, SIZE, in_chans=1))
    check_forward(model, torch.zeros(1, 1, *SIZE), 5)
    assert [m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)] == [1, 3]
    sys.modules.pop("grey_nets")
