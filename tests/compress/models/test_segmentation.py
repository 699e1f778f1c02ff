"""Networks for segmentation: against torchvision's own, and heads on other backbones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file

from vcompress.bench.errors import UserError
from vcompress.bench.own_code import is_factory
from vcompress.compress.models.catalogue import build, make_spec
from vcompress.compress.models.checkpoints import load_into
from vcompress.compress.models.segmentation import Segmenter, backbone_of, is_one

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def _made(name: str, weights: str | None = None) -> Segmenter:
    torch.manual_seed(0)
    found = build(make_spec(name, 5, (64, 64)), weights)
    assert isinstance(found, Segmenter)
    return found


@pytest.mark.parametrize(
    ("name", "stride"), [("lraspp_mobilenet_v3_large", 8), ("deeplabv3_mobilenet_v3_large", 16)]
)
def test_torchvisions_networks_give_what_torchvision_resizes(name: str, stride: int) -> None:
    ours = _made(name).eval()
    builder = torchvision.models.get_model_builder(name)
    aux = {} if name.startswith("lraspp") else {"aux_loss": True}
    theirs = builder(weights=None, weights_backbone=None, num_classes=5, **aux).eval()
    theirs.load_state_dict(ours.state_dict())  # the same names
    with torch.no_grad():
        found, wanted = ours(IMAGES), theirs(IMAGES)["out"]
    assert found.shape == (2, 5, 64 // stride, 64 // stride)
    assert torch.equal(
        F.interpolate(found, size=(64, 64), mode="bilinear", align_corners=False), wanted
    )


@pytest.mark.parametrize(
    ("name", "stride", "heads"),
    [
        ("deeplabv3+r18", 8, ("classifier.4", "aux_classifier.4")),
        ("fcn+mnv2", 16, ("classifier.4", "aux_classifier.4")),
        ("lraspp+mnv3s", 8, ("classifier.low_classifier", "classifier.high_classifier")),
        ("lraspp+timm:mobilenetv3_small_050", 8,
         ("classifier.low_classifier", "classifier.high_classifier")),
    ],
)  # fmt: skip
def test_a_head_stands_on_any_backbone(name: str, stride: int, heads: tuple[str, ...]) -> None:
    model = _made(name)
    assert model.head_paths == heads
    assert model.eval()(IMAGES).shape == (2, 5, 64 // stride, 64 // stride)
    found = model.train()(IMAGES)
    if "aux_classifier.4" in heads:
        assert found["out"].shape == found["aux"].shape == (2, 5, 64 // stride, 64 // stride)


def test_dilation_keeps_what_the_pretrained_backbone_computes() -> None:
    """Each fourth place of the dilated stage is a place of the strided one, away from the edge."""
    torch.manual_seed(0)
    plain = torchvision.models.resnet18().eval()
    trunk = backbone_of(_made("deeplabv3+r18").eval())
    assert trunk is not None
    own = trunk.state_dict()
    trunk.load_state_dict({name: plain.state_dict()[name] for name in own})
    image = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        x = plain.maxpool(plain.relu(plain.bn1(plain.conv1(image))))
        wanted = plain.layer4(plain.layer3(plain.layer2(plain.layer1(x))))
        found = trunk(image)["out"]
    assert found.shape[2] == 32 and wanted.shape[2] == 8
    middle = slice(3, 5)
    assert torch.allclose(found[:, :, ::4, ::4][:, :, middle, middle],
                          wanted[:, :, middle, middle], atol=1e-4)  # fmt: skip


def test_a_classification_checkpoint_becomes_the_backbone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    plain = torchvision.models.mobilenet_v2()
    save_file(plain.state_dict(), tmp_path / "mnv2.safetensors")
    model = _made("lraspp+mnv2", str(tmp_path / "mnv2.safetensors"))
    assert torch.equal(model.backbone.get_parameter("0.0.weight"), plain.features[0][0].weight)
    # Weights of the whole network, with the head, are taken whole.
    save_file(model.state_dict(), tmp_path / "whole.safetensors")
    other = _made("lraspp+mnv2")
    load_into(other, tmp_path / "whole.safetensors")
    again = _made("lraspp+mnv2", str(tmp_path / "whole.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(
        again.state_dict().values(), model.state_dict().values(), strict=True))  # fmt: skip
    with pytest.raises(UserError, match="saved from another"):
        _made("lraspp+r18", str(tmp_path / "mnv2.safetensors"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unet+r18", "unknown head 'unet' in 'unet\\+r18'.*fcn, deeplabv3, lraspp"),
        ("fcn+", "no backbone behind the \\+"),
        ("fcn+r81", "unknown model 'r81'. Did you mean 'r18'?"),
        ("fcn+vitb16", "no maps of features"),
        ("lraspp+regnet_y_400mf", "gives no features at stride 8"),
        ("fcn+timm:resnet81", "unknown backbone 'timm:resnet81'. Did you mean"),
        ("smp:uet-resnet34", "Did you mean 'unet'"),
        ("smp:unet-resnet", "unet has no encoder 'resnet'. Did you mean"),
    ],
)
def test_a_wrong_name_is_one_message(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(make_spec(name, 5, (64, 64)))


def test_networks_of_smp_have_a_head_and_a_backbone() -> None:
    torch.manual_seed(0)
    model = build(make_spec("smp:unet-mobilenet_v2", 5, (64, 64))).eval()
    assert getattr(model, "head_paths", ()) == ("segmentation_head.0",)
    assert model(IMAGES).shape == (2, 5, 64, 64) and backbone_of(model) is not None


def test_names_are_told_from_own_code() -> None:
    assert is_one("fcn+r18") and is_one("smp:unet-resnet34") and is_one("fcn_resnet50")
    assert not is_one("r18") and not is_one("own:net")
    assert is_factory("own:net") and is_factory("pack.age:net")
    assert not any(map(is_factory, ("smp:unet-resnet34", "fcn+timm:resnet18", "timm:x", "hf:x")))
