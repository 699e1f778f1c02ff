"""A network is run in channels_last only where that changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vcompress.compress.models.layout import against_channels_last, beside, lay_out


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 8 * 8, 5)

    def row(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.row(torch.relu(self.conv(x))))


class Viewed(Net):
    def row(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1)


class Strided(Net):
    """Reads the memory as it lies."""

    def row(self, x: Tensor) -> Tensor:
        return x.as_strided((len(x), 4 * 8 * 8), (4 * 8 * 8, 1))


class Backwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, *grad: Tensor) -> Tensor:
        return grad[0].as_strided((len(grad[0]), 4, 8, 8), (256, 64, 8, 1))


class StridedGradient(Net):
    def __init__(self) -> None:
        super().__init__()
        self.next = nn.Conv2d(4, 4, 3, padding=1)

    def row(self, x: Tensor) -> Tensor:
        made: Tensor = Backwards.apply(x)  # type: ignore[no-untyped-call]
        return self.next(made).flatten(1)


def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Net, None), (Viewed, "in row"), (Strided, "its outputs differ"),
        (StridedGradient, "its gradients differ"),
    ],
)  # fmt: skip
def test_a_network_says_what_it_has_against_channels_last(kind: type[Net], why: str | None) -> None:
    torch.manual_seed(0)
    net = kind()
    found = against_channels_last(net, images())
    assert found is None if why is None else found is not None and why in found
    if kind is Viewed:
        assert found is not None and "test_layout.py" in found
    assert net.conv.weight.stride() == (27, 9, 3, 1)
    assert net.conv.weight.grad is None


def test_a_network_that_fails_in_any_format_says_nothing_against_this_one() -> None:
    assert against_channels_last(Net(), images()[..., :4]) == ""


def test_only_kernels_of_convolutions_are_laid_out_and_strides_come_back_exactly() -> None:
    net = nn.Module()
    net.conv, net.point = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 1)
    net.table = nn.Parameter(torch.zeros(2, 3, 4, 4))
    net.register_buffer("five", torch.zeros(1, 2, 3, 4, 5))
    before = {name: t.stride() for name, t in net.state_dict().items()}
    lay_out(net, torch.channels_last)
    assert net.conv.weight.stride() == (27, 1, 9, 3)
    assert net.table.stride() == before["table"]
    lay_out(net, torch.contiguous_format)
    assert {name: t.stride() for name, t in net.state_dict().items()} == before


@pytest.mark.parametrize("kind", [Net, Viewed])
def test_a_teacher_is_asked_in_the_format_that_it_bears(kind: type[Net]) -> None:
    torch.manual_seed(0)
    net = kind().eval()
    with torch.no_grad():
        wanted = net(images())
        found = beside(net)(images().contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, wanted)
    assert net.conv.weight.is_contiguous() == (kind is Viewed)
