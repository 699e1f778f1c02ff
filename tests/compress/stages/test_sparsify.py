from typing import Any

import pytest
import torch
from torch import nn

from vcompress.bench.errors import UserError
from vcompress.compress.pruning.sparsity import sparse_layers
from vcompress.compress.stages.sparsify import Config, apply


class FakeContext:
    teacher = None
    seed = 0


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 2)
    )


def test_the_zeros_outlive_the_training_of_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[float] = []

    def fit(model: nn.Module, config: Any, context: Any, loss: Any, *, name: str) -> Any:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        images, labels = torch.randn(8, 3, 8, 8), torch.randint(0, 2, (8,))
        for _ in range(20):
            optimizer.zero_grad()
            value = loss(model(images), images, labels)
            value.backward()
            optimizer.step()
            losses.append(value.item())
        return {"epochs": 1}

    monkeypatch.setattr("vcompress.compress.train.fit", fit)
    model = network()
    outcome = apply(model, Config(), FakeContext())  # type: ignore[arg-type]
    assert outcome.details["layers"] == ["2", "4"] == sparse_layers(outcome.model)
    assert outcome.details["left_alone"] == {"0": "3 input channels are not in fours"}
    assert losses[-1] < losses[0]


def test_training_that_fills_the_zeros_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(model: Any, config: Any, context: Any, loss: Any, *, name: str) -> Any:
        with torch.no_grad():
            model[2].weight.add_(1.0)

    monkeypatch.setattr("vcompress.compress.train.fit", fit)
    with pytest.raises(RuntimeError, match="filled the zeros of 2"):
        apply(network(), Config(), FakeContext())  # type: ignore[arg-type]


def test_bad_options_are_refused() -> None:
    with pytest.raises(UserError, match="alpha = 2"):
        Config(alpha=2.0)
    with pytest.raises(UserError, match="temperature = 0"):
        Config(temperature=0.0)
