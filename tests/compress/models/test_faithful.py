"""A network that was made of another is held against it, and the first difference is named."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from vcompress.compress.models.faithful import NotTheSame, check_same, sqnr_db


class Net(nn.Module):
    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 5)
        self.gain = gain

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.b(torch.relu(self.a(x)) * self.gain)
        return {"out": self.c(x.mean((2, 3)))}


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def other(net: Net, gain: float) -> Net:
    made = copy.deepcopy(net)
    made.gain = gain
    return made


def test_the_first_module_that_differs_is_named() -> None:
    net = Net()
    with pytest.raises(NotTheSame, match=r"is the input of b; they agree up to the output of a\."):
        check_same(net, other(net, 1.5), (images(),), "the copy")
    changed = copy.deepcopy(net)
    with torch.no_grad():
        changed.b.weight[0] *= 2
    with pytest.raises(NotTheSame, match=r"is the output of b; they agree up to the input of b\."):
        check_same(net, changed, (images(),), "the copy")


def test_what_rounding_alone_changes_is_the_same() -> None:
    net = Net()
    check_same(net, other(net, 1.0 + 1e-6), (images(),), "the copy")
    with pytest.raises(NotTheSame, match=r"dB, expected 60 dB"):
        check_same(net, other(net, 1.01), (images(),), "the copy")


def test_a_network_that_draws_numbers_is_the_same_as_its_copy() -> None:
    class Noisy(Net):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return super().forward(x + torch.randn_like(x))

    net = Noisy().train()
    state = torch.random.get_rng_state()
    check_same(net, copy.deepcopy(net), (images(),), "the copy")
    assert net.training
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_network_that_magnifies_rounding_is_held_in_double_precision() -> None:
    class Steep(nn.Module):
        def __init__(self, order: bool) -> None:
            super().__init__()
            self.order = order

        def forward(self, x: Tensor) -> Tensor:
            total = (x * 0.1 + x * 0.2) if self.order else x * 0.3
            return (total - x.double().mul(0.3).to(x.dtype)) * 1e9 + x

    x = (images(),)
    assert sqnr_db(Steep(True)(*x), Steep(False)(*x)) < 20
    check_same(Steep(True), Steep(False), x, "the copy")


def test_sqnr_in_decibels() -> None:
    x = images()
    assert sqnr_db(x, x * 1.1) == pytest.approx(20.0, abs=1e-4)
    assert sqnr_db(x, x.clone()) == float("inf")
    assert sqnr_db(x, x[:1]) == -float("inf")
    assert sqnr_db(x * 1e30, x * 1.01e30) == pytest.approx(40.0, abs=1e-3)
    broken = torch.tensor([float("nan"), 1.0])
    assert sqnr_db(broken, broken.clone()) == float("inf")
