"""Changes in place are followed through names, views and statements whose result nobody reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vcompress.compress import quantization as q
from vcompress.compress.quantization.trace import trace
from vcompress.export import onnx_export, parity
from vcompress.export.runtime import run_onnx

Change = Callable[[Tensor], Tensor]


def a_statement(*call: Callable[[Tensor], object]) -> Change:
    def change(x: Tensor) -> Tensor:
        for one in call:
            one(x)
        return x

    return change


def two_names(x: Tensor) -> Tensor:
    keep = x
    x += 0.5
    return x * keep


def read_before_and_after(x: Tensor) -> Tensor:
    before = x * 1.0
    y = F.relu(x, True)
    return before + x - 0.5 * y


def a_view_of_a_view(x: Tensor) -> Tensor:
    x.permute(0, 2, 3, 1)[..., :4].transpose(1, 2)[:, 1:].mul_(3.0)
    return x


def a_view_read_afterwards(x: Tensor) -> Tensor:
    left = x[:, :4]
    x.mul_(2.0)
    left.neg_()
    return torch.cat([left, x], 1)[:, :8]


def halves(x: Tensor) -> Tensor:
    left, right = x.chunk(2, 1)
    left.add_(right)
    right.clamp_min_(0)
    return x


def half_of_the_channels(x: Tensor) -> Tensor:
    x[:, :4].mul_(3.0)
    return x


def an_item_that_is_set(x: Tensor) -> Tensor:
    x[:, 2:5] = x[:, :3] * 2
    x[:, 0] += 1.0
    return x


def by_an_index(x: Tensor) -> Tensor:
    x[:, [1, 2]].neg_()  # of a copy: x stays
    return x


def flattened(x: Tensor) -> Tensor:
    x.flatten(1).mul_(2.0)
    x.permute(0, 2, 3, 1).reshape(-1).add_(100.0)  # of a copy: x stays
    return x


def given_a_place(x: Tensor) -> Tensor:
    y = x * 2
    torch.add(x, 1.0, out=y)
    return y * x


def its_data(x: Tensor) -> Tensor:
    x.data.mul_(2.0)
    return x.detach().sub_(0.5) + x


def behind_a_dropout(x: Tensor) -> Tensor:
    F.dropout(x, 0.5, False).mul_(-1.0)
    return x


def sizes_that_grow(x: Tensor) -> Tensor:
    n = x.shape[0]
    keep = n
    n += 1
    return x * keep + n


KINDS: dict[str, Change] = {
    "relu_": a_statement(torch.relu_),
    "clip_": a_statement(lambda x: x.clip_(0, 6)),
    "leaky_relu_": a_statement(lambda x: F.leaky_relu_(x, 0.1)),
    "elu_": a_statement(F.elu_),
    "clamp_min_": a_statement(lambda x: x.clamp_min_(0)),
    "neg_": a_statement(lambda x: x.neg_(), lambda x: x.div_(0.7)),
    "relu_ in place": a_statement(lambda x: F.relu(x, inplace=True)),
    "hardtanh in place": a_statement(lambda x: F.hardtanh(x, 0.0, 6.0, inplace=True)),
    "by its place": a_statement(lambda x: F.relu6(x, True)),
    "zero_": lambda x: x + a_statement(lambda y: y[:, 0].zero_())(x * 2),
    "fill_": a_statement(lambda x: x[:, 3].fill_(0.25)),
    "copy_": a_statement(lambda x: x[:, :2].copy_(x[:, 2:4])),
    "masked_fill_": a_statement(lambda x: x.masked_fill_(x < 0.1, 0.2)),
    **{f.__name__: f for f in (
        two_names, read_before_and_after, a_view_of_a_view, a_view_read_afterwards, halves,
        half_of_the_channels, an_item_that_is_set, by_an_index, flattened, given_a_place, its_data,
        behind_a_dropout, sizes_that_grow,
    )},
}  # fmt: skip


class Changing(nn.Module):
    def __init__(self, change: Change) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.b, self.fc = nn.Conv2d(8, 8, 3, 1, 1), nn.Linear(8, 5)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        x = self.change(self.na(self.a(x)))
        x = self.change(self.b(x) + x)
        return self.fc(x.mean((2, 3)))


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return Changing(KINDS[kind]).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_computes_what_the_network_computes_in_place(kind: str) -> None:
    made, x = network(kind), images(4)
    kept = x.clone()
    with torch.no_grad():
        wanted = made(x.clone())
        graph = trace(made)
        assert torch.equal(graph(x), wanted)
        assert torch.equal(graph(x[:3]), made(x[:3].clone()))
    assert torch.equal(x, kept)
    assert [n for n, _ in made.named_parameters()] == [n for n, _ in graph.named_parameters()]


def test_a_change_in_place_of_the_images_is_followed() -> None:
    class Normalising(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            input.sub_(0.1).div_(0.7)
            input.neg_()
            return super().forward(input)

    torch.manual_seed(0)
    made, x = Normalising(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()).eval(), images(2)
    with torch.no_grad():
        assert torch.equal(trace(made)(x), made(x.clone()))


def test_a_module_that_works_in_place_is_followed_where_its_result_is_not_read() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 3, 3, 1, 1), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            self.act(y)
            return y + self.act(x)

    torch.manual_seed(0)
    made, x = nn.Sequential(Block(), Block()).eval(), images(2)
    with torch.no_grad():
        assert torch.equal(trace(made)(x), made(x.clone()))
    assert made[0].act.inplace


@pytest.mark.parametrize(
    "kind", ["clip_", "leaky_relu_", "two_names", "half_of_the_channels", "an_item_that_is_set"]
)
def test_the_int8_file_computes_what_the_network_computes_in_place(
    kind: str, tmp_path: Path
) -> None:
    made, x = network(kind), images(32)
    with torch.no_grad():
        wanted = made(x.clone()).numpy()
    prepared = q.prepare(made, x[:1], target="onnxruntime")
    q.calibrate(prepared, [x])
    deployed = q.to_export(prepared.eval())
    onnx_export.export(deployed, tmp_path / "m.onnx", ("input", (3, 12, 12)))
    got = run_onnx(tmp_path / "m.onnx", x.numpy(), optimised=True)[0]
    assert parity.compare(wanted, got).sqnr_db > 30
    assert parity.compare(parity.run_torch(deployed, x), got).sqnr_db > 50


def test_a_statement_that_clips_runs_in_integers_as_a_relu_does() -> None:
    nodes = {}
    for kind in ("clip_", "relu_", "clamp_min_", "hardtanh in place"):
        prepared = q.prepare(network(kind), images(1), target="onnxruntime")
        nodes[kind] = [a.get("relu", False) for a in q.placement(prepared)["activations"]]
    assert all(found == nodes["relu_"] for found in nodes.values())
    assert sum(nodes["relu_"]) == 2


def test_a_network_that_changes_in_place_trains_as_it_did() -> None:
    made = network("half_of_the_channels")
    graph = trace(made)
    for one in (made, graph):
        one.train()
        one(images(4)).square().sum().backward()
    theirs = dict(graph.named_parameters())
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None and theirs[name].grad is not None
        assert torch.allclose(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-6), name


def test_a_part_that_changes_its_input_in_place_stays_in_float() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            x.mul_(2.0)
            return self.conv(x)

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = nn.Conv2d(3, 8, 3, 2, 1), Scaled(), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            if float(x.detach().sum()) > -1e9:
                x = self.b(x) + x
            return self.fc(x.mean((2, 3)))

    torch.manual_seed(0)
    made, x = Branching().eval(), images(32)
    prepared = q.prepare(made, x[:1].clone(), target="onnxruntime")
    kept = {e["name"]: e["reason"] for e in q.placement(prepared)["float"]}
    assert kept["b"] == "it changes its input in place, which may be read outside of it"
    q.calibrate(prepared, [x])
    with torch.no_grad():
        wanted, got = made(x.clone()), q.to_export(prepared.eval())(x)
    assert parity.compare(wanted.numpy(), got.numpy()).sqnr_db > 30
