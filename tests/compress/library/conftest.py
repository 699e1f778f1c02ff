"""A small network of each kind of output, and batches that it can learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Three classes of 16 px images; it may give a dictionary or a tuple."""

    def __init__(self, gives: str = "tensor", classes: int = 3) -> None:
        super().__init__()
        self.gives = gives
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Any:
        logits = self.head(self.body(images))
        if self.gives == "dict":
            return {"aux": logits * 2, "logits": logits}
        return (logits, logits + 1) if self.gives == "tuple" else logits


class Stubborn(nn.Module):
    """A network that no tracer goes through, and nothing in it that one could."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 768))

    def forward(self, images: Tensor) -> Tensor:
        if float(images.detach().sum()) > 1e9:
            return images
        return (images.flatten(1) @ self.weight.T).detach()


@pytest.fixture
def net() -> Callable[..., nn.Module]:
    def make(gives: str = "tensor", classes: int = 3) -> nn.Module:
        torch.manual_seed(0)
        return Net(gives, classes)

    return make


@pytest.fixture
def stubborn() -> nn.Module:
    torch.manual_seed(0)
    return Stubborn()


@pytest.fixture
def example() -> Tensor:
    return batches(1)[0][0][:1]


@pytest.fixture
def loader() -> Callable[..., list[Any]]:
    """Batches of 16 as `pairs`, `tensors`, `dicts` or `odd` objects."""

    def make(form: str = "pairs", count: int = 4) -> list[Any]:
        found = batches(count)
        return {
            "pairs": found,
            "tensors": [images for images, _ in found],
            "dicts": [{"pixel_values": x, "labels": y} for x, y in found],
            "odd": [("id", {"deep": x}, y) for x, y in found],
        }[form]

    return make


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        labels = torch.randint(0, 3, (16,), generator=generator)
        images = torch.randn(16, 3, 16, 16, generator=generator)
        images[torch.arange(16), labels] += 1.0
        found.append((images, labels))
    return found


@pytest.fixture
def fit() -> Callable[..., nn.Module]:
    """A user's own loop."""

    def train(net: nn.Module, loader: list[Any], lr: float = 3e-3, loss: Any = None) -> nn.Module:
        optimizer = torch.optim.AdamW(net.parameters(), lr)
        net.train()
        for images, labels in loader * 4:
            found = net(images)
            value = (
                nn.functional.cross_entropy(found, labels)
                if loss is None
                else loss(found, images, labels)
            )
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        return net.eval()

    return train


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Latency of a bundle is measured briefly."""
    from vcompress.compress.pipeline import measure

    monkeypatch.setattr(measure, "LATENCY_SECONDS", 0.2)
    yield
