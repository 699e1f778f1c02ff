import pytest
import torch
import torchvision.models as tv
from torch import nn

from vcompress.bench.errors import UserError
from vcompress.compress.models.cost import count_macs
from vcompress.compress.pruning.blocks import drop_blocks, droppable


def test_the_residual_blocks_of_a_resnet_without_downsampling_can_go() -> None:
    model = tv.resnet18(weights=None, num_classes=4)
    assert droppable(model, torch.randn(1, 3, 32, 32)) == [
        "layer1.0",
        "layer1.1",
        "layer2.1",
        "layer3.1",
        "layer4.1",
    ]


def test_the_layers_of_a_transformer_can_go() -> None:
    model = tv.VisionTransformer(32, 8, 3, 2, 16, 32, num_classes=4)
    assert droppable(model, torch.randn(1, 3, 32, 32)) == [
        f"encoder.layers.encoder_layer_{i}" for i in range(3)
    ]


def test_a_plain_chain_has_no_block_that_can_go() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), nn.Conv2d(3, 2, 1))
    assert droppable(model, torch.randn(1, 3, 4, 4)) == []


def test_the_block_that_does_least_goes_first() -> None:
    torch.manual_seed(0)
    model = tv.resnet18(weights=None, num_classes=4).train()
    with torch.no_grad():
        model.layer3[1].bn2.weight.mul_(1e-3)
        model.layer1[0].bn2.weight.mul_(1e-2)
    images = torch.randn(4, 3, 32, 32)
    before = count_macs(model, images)
    dropped = drop_blocks(model, images[:1], images, 2)
    assert [block.path for block in dropped] == ["layer3.1", "layer1.0"]
    assert 0 < dropped[0].effect < dropped[1].effect
    assert isinstance(model.layer3[1], nn.Identity) and model.training
    assert count_macs(model, images) < before
    assert model(images).shape == (4, 4)


def test_more_blocks_than_there_are_is_an_error_that_names_them() -> None:
    model = tv.resnet18(weights=None, num_classes=4)
    images = torch.randn(1, 3, 32, 32)
    with pytest.raises(UserError, match=r"has 3 blocks that can go: layer2.1, layer3.1, layer4.1"):
        drop_blocks(model, images, images, 4, protect=("layer1.*",))
    with pytest.raises(UserError, match=r"has 4 blocks that can go: layer1.0, layer1"):
        drop_blocks(model, images, images, 5, protect=("layer3.*.conv2",))
    with pytest.raises(UserError, match="protect: 'layer9' is no module"):
        drop_blocks(model, images, images, 1, protect=("layer9",))
    with pytest.raises(UserError, match="expected 1 or more"):
        drop_blocks(model, images, images, 0)
