"""A graph that is another function, and a calibration that lost the network, stop with a place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.compress import quantization as q
from vcompress.compress.models.faithful import NotTheSame
from vcompress.compress.quantization.ptq import Scheme, quantised
from vcompress.compress.quantization.quality import Lost, rounding_only
from vcompress.compress.quantization.repairs import Repairs, repaired


def images(count: int = 8) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def test_a_traced_network_that_is_another_function_is_refused_before_calibration() -> None:
    torch.manual_seed(0)

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1  # a state of the network: the graph has the number of the first call
            return self.fc(torch.relu(self.a(x) * self.calls).mean((2, 3)))

    with pytest.raises(NotTheSame, match=r"the input of fc; they agree up to the output of a\."):
        quantised(Counting().eval(), images(1), [images()], Scheme("onnxruntime"))


def test_a_network_that_differs_on_many_images_alone_is_refused_before_calibration() -> None:
    torch.manual_seed(0)

    class ByBatch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            many = isinstance(x, Tensor) and len(x) > 1  # a tracer's stand-in is no tensor
            return self.fc(torch.relu(self.a(x) * (2.0 if many else 1.0)).mean((2, 3)))

    net = ByBatch().eval()
    with pytest.raises(NotTheSame, match=r"The first difference is the input of fc"):
        quantised(net, images(1), [images()], Scheme("onnxruntime"))


def lossy() -> nn.Module:
    """One channel is a million times the others, and the others are what counts."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(512, 4)
    ).eval()
    with torch.no_grad():
        net[0].weight[0] *= 1e6
        net[2].weight[:, 0] = 0
    return net


def test_a_calibration_that_lost_the_network_names_the_first_tensor() -> None:
    def made(**options: float) -> tuple[nn.Module, dict[str, float]]:
        off = Repairs("off", "off", "off")
        return repaired(
            lossy(), images(1), [images()], images(), Scheme("onnxruntime"), off, **options
        )

    with pytest.raises(Lost, match=r"expected 10 dB") as found:
        made()
    assert "The first tensor that differs is the output of 2 (" in str(found.value)
    assert "min_sqnr_db = -" in str(found.value)
    assert issubclass(Lost, UserError)
    assert made(min_sqnr_db=-1000.0)[1]["sqnr_db"] < 10


def test_weights_of_few_bits_may_lose_more() -> None:
    net, report = repaired(
        lossy(), images(1), [images()], images(), Scheme("onnxruntime", weight_bits=2),
        Repairs("off", "off", "off"),
    )  # fmt: skip
    assert report["sqnr_db"] < 10
    assert q.is_quantized(net)


def test_nothing_is_rounded_for_a_while() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    made = quantised(net, images(1), [images()], Scheme("onnxruntime"))
    with torch.no_grad():
        rounded = made(images())
        with rounding_only(made):
            assert torch.equal(made(images()), net(images()))
        assert torch.equal(made(images()), rounded)
        assert not torch.equal(rounded, net(images()))
