"""Layers that are calls alone are pruned as modules are."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.compress.models.changes import describe, load, reshape
from vcompress.compress.pruning import prune
from vcompress.compress.pruning.functional import Call, Calls
from vcompress.compress.pruning.probe import difference

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Functional(nn.Module):
    """No layer but the last is a module."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.shift = (
            nn.Parameter(torch.randn(32, 3, 3, 3)),
            nn.Parameter(torch.ones(32)),
        )
        self.up = nn.Parameter(torch.randn(32, 24, 2, 2))
        self.grouped = nn.Parameter(torch.randn(24, 6, 3, 3))
        self.register_buffer("blur", torch.rand(24, 1, 3, 3))
        self.register_buffer("mean", torch.randn(24))
        self.register_buffer("variance", torch.rand(24) + 0.5)
        self.scale = nn.Parameter(torch.rand(24))
        self.matrix, self.flipped = (
            nn.Parameter(torch.randn(16, 24)),
            nn.Parameter(torch.randn(16, 20)),
        )
        self.head = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.kernel, bias=self.shift, padding=1).relu()
        x = F.conv_transpose2d(x, self.up, stride=2).relu()
        x = F.conv2d(x, weight=self.blur, groups=x.shape[1])
        x = F.conv2d(x, self.grouped, None, 1, 1, 1, 4)
        x = F.batch_norm(x, self.mean, self.variance, self.scale, training=False).relu()  # type: ignore[arg-type]
        rows = F.linear(x.mean((2, 3)), self.matrix).relu() @ self.flipped
        return self.head(rows.tanh())  # type: ignore[no-any-return]


def test_every_call_of_a_layer_is_cut_as_a_layer_is() -> None:
    torch.manual_seed(0)
    model = Functional().eval()
    whole = copy.deepcopy(model)
    report = prune(model, IMAGES[:1], channels=0.5, round_to=1)
    assert {w.name: (w.before, w.after) for w in report.layers} == {
        "kernel": (32, 16), "up": (24, 12), "grouped": (24, 12), "matrix": (16, 8),
        "flipped": (20, 10),
    }  # fmt: skip
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == {
        "kernel": (16, 3, 3, 3), "shift": (16,), "up": (16, 12, 2, 2), "grouped": (12, 3, 3, 3),
        "blur": (12, 1, 3, 3), "mean": (12,), "variance": (12,), "scale": (12,),
        "matrix": (8, 12), "flipped": (8, 10), "head.weight": (4, 10), "head.bias": (4,),
    }  # fmt: skip
    assert difference(whole, report.groups, report.removed, IMAGES) < 1e-12
    again = load(reshape(whole, json.loads(json.dumps(describe(model, whole)))), model.state_dict())
    assert torch.equal(again(IMAGES), model(IMAGES))


@pytest.mark.parametrize("limit", ["macs<=0.5", "params<=0.5"])
def test_budgets_count_what_calls_cost(limit: str) -> None:
    torch.manual_seed(0)
    report = prune(Functional(), IMAGES[:1], limit, round_to=1)
    assert 0.45 <= report.achieved[limit[: limit.index("<")]] <= 0.502


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.kernel, self.head = nn.Parameter(torch.randn(16, 16, 3, 3) / 12), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + F.relu(F.conv2d(x, self.kernel, padding=1))
        x = x + F.relu(F.conv2d(x, self.kernel, padding=1, stride=1))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_a_kernel_of_two_calls_in_a_residual_stream_goes_with_the_stream() -> None:
    torch.manual_seed(0)
    model = Twice().eval()
    whole = copy.deepcopy(model)
    report = prune(model, IMAGES[:1], channels=0.5, round_to=1)
    assert [(w.name, w.after) for w in report.layers] == [("stem", 8)]
    assert model.kernel.shape == (8, 8, 3, 3)
    assert difference(whole, report.groups, report.removed, IMAGES) < 1e-12


class Mixed(nn.Module):
    """The kernel is a mean of several, as of dynamic convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.kernels, self.head = nn.Parameter(torch.randn(3, 32, 16, 3, 3)), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(F.relu(self.stem(x)), self.kernels.mean(0))
        return self.head(F.relu(x).mean((2, 3)))  # type: ignore[no-any-return]


def test_a_weight_that_is_computed_for_a_call_is_named() -> None:
    with pytest.raises(UserError, match="kernels: a function computes a weight of it"):
        prune(Mixed(), IMAGES[:1], channels=0.5)


class Through(nn.Module):
    """Gradients end at the stem's output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).detach().mean((2, 3)))  # type: ignore[no-any-return]


def test_a_layer_that_the_trace_does_not_meet_is_named() -> None:
    with pytest.raises(UserError, match="stem: no operation that autograd follows leads from it"):
        prune(Through(), IMAGES[:1], channels=0.5)


def test_calls_of_layers_are_theirs_and_not_the_network_s() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 2))
    found: list[str] = []

    def handle(call: Call, images: Tensor, again: object) -> Tensor:
        found.append(call.name)
        return images

    with Calls(model.eval(), handle):
        model(IMAGES)
    assert found == []
