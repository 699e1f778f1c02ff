"""What torchvision and timm record of their pretrained weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from vcompress.bench.bundle import IMAGENET, Preprocess
from vcompress.bench.errors import UserError
from vcompress.compress.models.catalogue import build, make_spec, spec_from_json
from vcompress.compress.models.pretrained import preprocess, settle_transform

SMALL = Preprocess((32, 32), mean=(0.3,) * 3, std=(0.4,) * 3)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's folder of downloads: what lies there is taken and not downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_googlenet_with_weights_computes_what_torchvisions_builder_gives(cache: Path) -> None:
    weights = torchvision.models.GoogLeNet_Weights.DEFAULT
    torch.manual_seed(0)
    whole = torchvision.models.googlenet(weights=None, init_weights=False)  # auxiliary heads too
    torch.save(whole.state_dict(), cache / weights.url.rpartition("/")[2])
    theirs = torchvision.models.googlenet(weights=weights).eval()
    spec = make_spec("googlenet", 1000, (64, 64), weights="default")
    ours = build(spec, "default").eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))
    assert spec_from_json(spec.to_json(), "here") == spec


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_the_input_is_transformed_where_there_are_weights_alone(name: str) -> None:
    assert make_spec(name, 10, (96, 96), weights="a.pth").kwargs["transform_input"] is True
    assert "transform_input" not in make_spec(name, 10, (96, 96)).kwargs
    assert make_spec("resnet18", 10, (96, 96), weights="default").kwargs == {}


@pytest.mark.parametrize("trained_with", [True, False])
def test_the_first_batch_norm_tells_whether_the_input_was_transformed(trained_with: bool) -> None:
    class Net(torchvision.models.GoogLeNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv1(self._transform_input(x))

    torch.manual_seed(0)
    net = Net(num_classes=3, aux_logits=False, init_weights=False, transform_input=trained_with)
    images = torch.randn(64, 3, 32, 32)
    net.train()
    for _ in range(60):
        net(torch.randn(16, 3, 32, 32))
    assert settle_transform(net, images) is trained_with
    assert net.transform_input is trained_with
    assert net.training


def test_a_network_of_timm_takes_images_as_its_weights_were_trained() -> None:
    timm = pytest.importorskip("timm")
    from timm.data import create_transform, resolve_data_config

    for name in ("vit_tiny_patch16_224", "resnet50", "inception_v3", "beit_base_patch16_224"):
        found = preprocess(f"timm:{name}", "w.pth", IMAGENET)
        with torch.device("meta"):
            model = timm.create_model(name)
        steps = create_transform(**resolve_data_config(model=model), is_training=False).transforms
        resize, crop, norm = steps[0], steps[1], steps[-1]
        assert (found.size, found.resize) == (tuple(crop.size), resize.size)
        assert found.interpolation == resize.interpolation.value
        assert found.mean == pytest.approx(norm.mean.tolist())
        assert found.std == pytest.approx(norm.std.tolist())
    assert preprocess("timm:vit_tiny_patch16_224", None, IMAGENET) == IMAGENET


def test_small_images_keep_their_size_and_take_the_weights_mean() -> None:
    pytest.importorskip("timm")
    found = preprocess("timm:vit_tiny_patch16_224", "default", SMALL)
    assert found == replace(SMALL, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic")


def test_torchvisions_record_is_of_its_own_weights_alone() -> None:
    found = preprocess("inception_v3", "default", IMAGENET)
    assert (found.size, found.resize, found.interpolation) == ((299, 299), 342, "bilinear")
    assert preprocess("efficientnet_b0", "default", IMAGENET).interpolation == "bicubic"
    assert preprocess("inception_v3", "mine.pth", IMAGENET) == IMAGENET
    assert preprocess("mine:net", "default", SMALL) == SMALL


def test_timms_pretrained_weights_are_fitted_to_the_image_size_by_timm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timm = pytest.importorskip("timm")
    from vcompress.compress.models import pretrained

    asked: dict[str, object] = {}

    def create_model(name: str, pretrained: bool = False, **kwargs: object) -> nn.Module:
        asked.update(kwargs, name=name, pretrained=pretrained)
        return nn.Linear(2, 2)

    monkeypatch.setattr(timm, "create_model", create_model)
    pretrained.tensors("timm:vit_tiny_patch16_224", {"img_size": 64})
    assert asked == {"name": "vit_tiny_patch16_224", "pretrained": True, "img_size": 64}


def test_a_preset_with_two_sides_before_the_crop_is_refused() -> None:
    from vcompress.compress.models.pretrained import of_torchvision

    preset = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    preset.resize_size = [256, 320]
    with pytest.raises(UserError, match=r"resize_size = \[256, 320\]"):
        of_torchvision(preset)
