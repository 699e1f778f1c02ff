"""Checkpoints with weight norm or spectral norm, in either writing of torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations as new

from vcompress.bench.errors import UserError
from vcompress.compress.models.checkpoints import load_into
from vcompress.export.folding import modernise

Wrap = Callable[[nn.Module], nn.Module]
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(wrap: Wrap) -> nn.Module:
    return nn.Sequential(
        wrap(nn.Conv2d(3, 8, 3)), nn.ReLU(), wrap(nn.ConvTranspose2d(8, 6, 2)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), wrap(nn.Linear(6, 4)),
    ).eval()  # fmt: skip


def plain(module: nn.Module) -> nn.Module:
    return module


@pytest.mark.filterwarnings("ignore:`torch.nn.utils")
@pytest.mark.parametrize(
    ("saved", "wanted"),
    [
        (nn.utils.weight_norm, new.weight_norm), (nn.utils.spectral_norm, new.spectral_norm),
        (nn.utils.weight_norm, plain), (new.weight_norm, plain), (new.weight_norm, new.weight_norm),
        (lambda m: nn.utils.weight_norm(m, dim=None), plain),
        (lambda m: new.weight_norm(m, dim=1), plain),
    ],
)  # fmt: skip
def test_a_file_of_one_writing_is_read_into_a_network_of_the_other(
    saved: Wrap, wanted: Wrap, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    source = network(saved)
    for tensor in source.state_dict().values():
        tensor.mul_(1.5)  # so that lengths are not those of the directions
    outputs = source(IMAGES)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model = network(wanted)
    loaded = load_into(model, tmp_path / "w.pth")
    assert loaded.left_over == () and loaded.missing == ()
    torch.testing.assert_close(model.eval()(IMAGES), outputs, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils")
def test_a_network_with_hooks_takes_its_own_checkpoint_once_it_has_parametrisations(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    source = network(nn.utils.weight_norm)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "w.pth")
    model = network(nn.utils.weight_norm)
    modernise(model)
    load_into(model, tmp_path / "w.pth")
    assert torch.equal(model.eval()(IMAGES), source(IMAGES))


def test_spectral_norm_is_not_guessed_into_a_plain_network(tmp_path: Path) -> None:
    torch.save(network(new.spectral_norm).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match="tensors are missing"):
        load_into(network(plain), tmp_path / "w.pth")
