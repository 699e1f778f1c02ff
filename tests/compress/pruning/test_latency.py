"""The knapsack against brute force, and pruning against a clock that is a formula."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from vcompress.bench.errors import UserError
from vcompress.compress.pruning.latency import knapsack, losses, prune_to_latency, thinned
from vcompress.compress.pruning.latency_table import (
    LatencyTable,
    LayerCall,
    layer_calls,
    vbench_ratio,
    write_layer,
)
from vcompress.compress.pruning.widths import Ladder


def test_the_knapsack_finds_what_trying_everything_finds() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        values = [random.random(4) for _ in range(4)]
        costs = [random.integers(0, 20, 4).astype(float) for _ in range(4)]
        budget = 30.0
        picked = knapsack(
            values, costs, budget, bins=int(budget - sum(c.min() for c in costs)) or 1
        )
        best = min(
            (
                sum(v[i] for v, i in zip(values, choice, strict=True))
                for choice in itertools.product(range(4), repeat=4)
                if sum(c[i] for c, i in zip(costs, choice, strict=True)) <= budget
            ),
            default=None,
        )
        if best is None:
            assert picked is None
            continue
        assert picked is not None
        assert sum(c[i] for c, i in zip(costs, picked, strict=True)) <= budget
        assert sum(v[i] for v, i in zip(values, picked, strict=True)) == pytest.approx(best)


def test_the_knapsack_never_spends_more_than_it_has_and_takes_negative_costs() -> None:
    values = [np.array([0.0, 1.0, 3.0]), np.array([0.0, 0.5])]
    costs = [np.array([0.0, -2.0, -5.0]), np.array([0.0, -1.0])]
    assert knapsack(values, costs, -3.0) == [1, 1]
    assert knapsack(values, costs, -6.5) is None


def test_a_narrower_width_that_saves_no_time_is_not_taken() -> None:
    values = [np.array([1.0, 0.5, 0.0]), np.array([1.0, 0.0])]
    costs = [np.array([3.0, 5.0, 5.0]), np.array([1.0, 4.0])]
    assert knapsack(values, costs, 6.0) == [2, 0]


def test_losses_fall_with_width_and_forbid_emptying_a_layer() -> None:
    lost = losses(Ladder("g", (1, 2, 4)), torch.tensor([4.0, 3.0, 2.0, 1.0]))
    assert lost == pytest.approx([-np.log(0.4), -np.log(0.7), 0.0])


def test_a_long_ladder_is_thinned_and_keeps_its_full_width() -> None:
    assert thinned(Ladder("g", tuple(range(1, 65)))).counts == (4, 10, 16, 22, 28, 34, 40, 46, 52,
                                                                58, 64)  # fmt: skip


def test_layers_are_found_as_the_network_calls_them() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding="valid"),
        nn.Conv2d(8, 8, 3, padding="same", groups=8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )
    calls = layer_calls(model, torch.randn(1, 3, 9, 9))
    assert [(c.path, c.kind, c.shape, c.padding) for c in calls] == [
        ("0", "conv", (9, 9), (0, 0)),
        ("1", "depthwise", (4, 4), (1, 1)),
        ("4", "linear", (1,), ()),
    ]


def test_a_layer_file_computes_that_layer(tmp_path: Path) -> None:
    import onnxruntime as ort

    call = LayerCall("x", "conv", (8, 6), 8, 4, 2, (3, 3), (2, 1), (1, 1), (1, 1))
    write_layer(call, 4, 2, tmp_path / "l.onnx")
    session = ort.InferenceSession(str(tmp_path / "l.onnx"), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 4, 8, 6]
    (out,) = session.run(None, {"x": np.ones((1, 4, 8, 6), np.float32)})
    assert out.shape == (1, 2, 4, 6)


def clock(path: Path) -> float:
    """Milliseconds by formula: weights of the file times 1e-3, in steps of 16 channels."""
    graph = onnx.load(str(path)).graph
    return 0.01 + sum(
        1e-3 * float(np.prod([-(-d // 16) * 16 if i < 2 else d for i, d in enumerate(w.dims)]))
        for w in graph.initializer if len(w.dims) > 1
    )  # fmt: skip


def export(model: nn.Module, path: Path) -> None:
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    graph = onnx.helper.make_graph(
        [], "g", [], [],
        [onnx.numpy_helper.from_array(c.weight.detach().numpy(), str(i))
         for i, c in enumerate(layers)],
    )  # fmt: skip
    onnx.save(onnx.helper.make_model(graph), str(path))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(16, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 128, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(128, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 16, 1),
    )


@pytest.mark.parametrize("options", [{"latency": 0.5}, {"latency_ms": 80.0}])
def test_the_latency_is_met_and_predicted(options: dict[str, float], tmp_path: Path) -> None:
    model = network()
    table = LatencyTable.open(tmp_path / "t.json", clock, {"cpu": "formula"})
    report = prune_to_latency(
        model,
        torch.randn(1, 16, 8, 8),
        table,
        export,
        round_to=8,
        **options,  # type: ignore[arg-type]
    )
    budget = options.get("latency_ms", report.before_ms * options.get("latency", 1.0))
    assert 0.85 * budget <= report.measured_ms <= 1.01 * budget
    assert report.predicted_ms == pytest.approx(report.measured_ms, rel=0.05)
    # widths between multiples of 16 cost as much as the next one, so none is used
    assert all(layer.after % 16 == 0 for layer in report.prune.layers)
    assert model(torch.randn(1, 16, 8, 8)).shape == (1, 16, 8, 8)

    def never(path: Path) -> float:
        raise AssertionError("measured again")

    # a resumed run finds all it measured in the file, and chooses the same
    again = prune_to_latency(
        network(),
        torch.randn(1, 16, 8, 8),
        LatencyTable.open(tmp_path / "t.json", never, {"cpu": "formula"}),
        export,
        round_to=8,
        **options,  # type: ignore[arg-type]
    )
    assert again.prune.layers == report.prune.layers


def test_a_machine_that_drifts_does_not_change_the_widths() -> None:
    """Whole networks are compared with each other: one measured later is not thought slower."""
    reports = []
    for slower_later in (1.0, 1.6):
        calls: list[str] = []

        def drifting(path: Path, factor: float = slower_later, calls: list[str] = calls) -> float:
            if path.name == "model.onnx":
                calls.append(path.name)
            return clock(path) * (factor if len(calls) > 1 else 1.0)

        table = LatencyTable.open(None, drifting, {}, lambda a, b: clock(b) / clock(a))
        reports.append(
            prune_to_latency(
                network(), torch.randn(1, 16, 8, 8), table, export, round_to=8, latency=0.5
            )
        )
        assert len(calls) == 1
    assert reports[0].prune.layers == reports[1].prune.layers
    assert 0.43 <= reports[1].measured_ms / reports[1].before_ms <= 0.51


def test_a_budget_is_met_though_single_times_are_noise() -> None:
    """Narrower is often slower then, and the way down by small steps ends too early."""

    def noisy(path: Path) -> float:
        weights = onnx.load(str(path)).graph.initializer
        random = np.random.default_rng([0, *(d for w in weights for d in w.dims)])
        return clock(path) * (random.uniform(0.7, 1.3) if path.name == "layer.onnx" else 1.0)

    table = LatencyTable.open(None, noisy, {}, lambda a, b: clock(b) / clock(a))
    report = prune_to_latency(
        network(), torch.randn(1, 16, 8, 8), table, export, round_to=8, latency=0.1
    )
    assert report.predicted_ms <= 0.1 * report.before_ms


def test_vbench_finds_the_narrower_layer_faster(tmp_path: Path) -> None:
    call = LayerCall("x", "linear", (64,), 512, 512)
    for name, width in (("wide", 512), ("narrow", 64)):
        write_layer(call, 512, width, tmp_path / f"{name}.onnx")
    ratio = vbench_ratio(0.3, "cpu", 1)
    assert ratio(tmp_path / "wide.onnx", tmp_path / "narrow.onnx") < 0.6


def test_the_table_is_reused_where_it_was_taken_and_nowhere_else(tmp_path: Path) -> None:
    file = tmp_path / "not" / "yet" / "t.json"
    call = LayerCall("x", "linear", (1,), 4, 4)
    first = LatencyTable.open(file, lambda path: 2.0, {"cpu": "a"})
    assert first.at(call, 4, 4) == 0.0
    first.entries[call.key(4, 4)] = 5.0
    first.save()

    def never(path: Path) -> float:
        raise AssertionError("measured again")

    assert LatencyTable.open(file, never, {"cpu": "a"}).at(call, 4, 4) == 3.0
    assert LatencyTable.open(file, never, {"cpu": "b"}).entries == {}
    assert json.loads(file.read_text())["environment"] == {"cpu": "a"}
    file.write_text("[]")
    with pytest.raises(UserError, match="no table of latencies"):
        LatencyTable.open(file, never, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of latency"),
        ({"latency": 0.5, "latency_ms": 1.0}, "exactly one of latency"),
        ({"latency": 1.5}, "between 0 and 1"),
        ({"latency_ms": 1e6}, "the network takes"),
        (
            {"latency_ms": 0.5},
            r"of 0.5 ms cannot be met: .* least is about \d+\.?\d* ms, 0\.\d+ of",
        ),
    ],
)
def test_bad_latencies_are_refused(options: dict[str, Any], message: str) -> None:
    table = LatencyTable.open(None, clock, {})
    with pytest.raises(UserError, match=message):
        prune_to_latency(network(), torch.randn(1, 16, 8, 8), table, export, **options)
