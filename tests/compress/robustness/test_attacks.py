"""Attacks: within their reach, on valid pixels, and without a trace in the network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vcompress.compress.robustness.attacks import attacked

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.1, 0.4)


def pixels(images: torch.Tensor) -> torch.Tensor:
    return images * torch.tensor(STD).view(1, 3, 1, 1) + torch.tensor(MEAN).view(1, 3, 1, 1)


def normal(images: torch.Tensor) -> torch.Tensor:
    return (images - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


@pytest.mark.parametrize("kind", ["fgsm", "pgd"])
def test_an_attack_stays_in_reach_on_valid_pixels_and_raises_the_loss(
    tiny_nets: Any, kind: Any
) -> None:
    torch.manual_seed(0)
    model = tiny_nets.batch().eval()
    clean = torch.rand(8, 3, 16, 16)
    clean[0, :, :8], clean[1, :, :8] = 0.0, 1.0
    images, labels = normal(clean), torch.arange(8) % 3
    found = attacked(
        model,
        images,
        labels,
        kind=kind,
        epsilon=0.03,
        steps=5,
        mean=MEAN,
        std=STD,
        loss=F.cross_entropy,
    )
    change = (pixels(found) - clean).abs()
    assert float(change.max()) == pytest.approx(0.03, abs=1e-5)
    # The same reach in each channel, though each has a scale of its own.
    assert change.amax((0, 2, 3)).tolist() == pytest.approx([0.03] * 3, abs=1e-5)
    assert float(pixels(found).min()) >= -1e-5 and float(pixels(found).max()) <= 1 + 1e-5
    with torch.no_grad():
        assert F.cross_entropy(model(found), labels) > F.cross_entropy(model(images), labels)
    assert not found.requires_grad


def test_fgsm_is_one_step_along_the_sign_of_the_gradient() -> None:
    """Two classes, logits (0, w . x): the loss of class 1 falls with w . x, so x goes against w."""
    weight = torch.tensor([1.0, -2.0, 0.5])

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            score = (x.mean((2, 3)) * weight).sum(1)
            return torch.stack([torch.zeros_like(score), score], 1)

    images = normal(torch.full((1, 3, 2, 2), 0.5))
    found = attacked(
        Net(),
        images,
        torch.tensor([1]),
        kind="fgsm",
        epsilon=0.1,
        steps=1,
        mean=MEAN,
        std=STD,
        loss=F.cross_entropy,
    )
    assert pixels(found)[0, :, 0, 0].tolist() == pytest.approx([0.4, 0.6, 0.4])


def test_the_network_is_left_as_it_was(tiny_nets: Any) -> None:
    model = tiny_nets.batch().train()
    model[1].eval()  # a frozen norm stays so
    before = {k: v.clone() for k, v in model.state_dict().items()}
    images = torch.randn(4, 3, 16, 16)
    soft = torch.full((4, 3), 1 / 3)
    attacked(
        model,
        images,
        soft,
        kind="pgd",
        epsilon=0.1,
        steps=2,
        mean=MEAN,
        std=STD,
        loss=F.cross_entropy,
    )
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.children()] == [n != 1 for n in range(10)]
    assert all(p.grad is None for p in model.parameters())


def test_pgd_finds_what_fgsm_does_not() -> None:
    """The loss of a network with a bend: one step overshoots the worst point inside the reach."""

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            score = -((x.mean((1, 2, 3)) - 0.54) ** 2) * 100
            return torch.stack([score, torch.zeros_like(score)], 1)

    images = torch.full((1, 1, 2, 2), 0.5)
    options: dict[str, Any] = {"epsilon": 0.1, "steps": 20, "mean": (0.0,), "std": (1.0,)}
    label = torch.tensor([1])
    one = attacked(Net(), images, label, kind="fgsm", loss=F.cross_entropy, **options)
    many = attacked(Net(), images, label, kind="pgd", loss=F.cross_entropy, **options)
    assert float(one.mean()) == pytest.approx(0.6)
    assert float(many.mean()) == pytest.approx(0.54, abs=0.013)
