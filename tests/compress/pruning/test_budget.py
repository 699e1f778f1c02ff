"""One budget, however it is given: the same widths, met as asked, and refused in words."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models as tv
from torch import nn

from vcompress.bench.errors import UserError
from vcompress.bench.gates.limits import Budget, parse
from vcompress.compress.models.cost import count_macs, count_parameters
from vcompress.compress.pruning.budget import Meter, choose
from vcompress.compress.pruning.cost import CostModel
from vcompress.compress.pruning.latency import prune_to_latency
from vcompress.compress.pruning.latency_table import LatencyTable
from vcompress.compress.pruning.prune import PruneOptions, analyse, prune
from vcompress.compress.pruning.structure import Group
from vcompress.compress.pruning.widths import ladder, uniform
from vcompress.compress.stages.prune import Config

EXAMPLE = torch.zeros(1, 3, 32, 32)


def network() -> nn.Module:
    torch.manual_seed(0)
    return tv.resnet18(num_classes=10)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip


def bytes_of(model: nn.Module, path: Path) -> None:
    """As if a file were its weights, with 1,000 bytes around them."""
    path.write_bytes(bytes(1000 + 4 * count_parameters(model)))


@pytest.mark.parametrize(("kind", "share"), [("macs", 0.5), ("params", 0.3), ("channels", 0.6)])
def test_shorthand_text_and_object_cut_the_same_widths(kind: str, share: float) -> None:
    ways: list[dict[str, Any]] = [
        {kind: share},
        {"budget": f"{kind}<={share}"},
        {"budget": f"{kind}<={100 * share:g}%"},
        {"budget": Budget(kind, share, relative=True)},
    ]
    reports = [prune(network(), EXAMPLE, **way) for way in ways]
    assert reports[0].achieved[kind] == pytest.approx(share, abs=0.01)
    assert all(report.layers == reports[0].layers for report in reports)
    assert all(report.asked == reports[0].asked for report in reports)


@pytest.mark.parametrize("kind", ["macs", "params"])
def test_an_absolute_count_is_the_share_of_what_the_network_has(kind: str) -> None:
    whole = {"macs": count_macs(network(), EXAMPLE), "params": count_parameters(network())}[kind]
    model = network()
    report = prune(model, EXAMPLE, f"{kind}<={whole // 2}")
    assert report.layers == prune(network(), EXAMPLE, **{kind: 0.5}).layers  # type: ignore[arg-type]
    after = {"macs": report.macs[1], "params": report.params[1]}[kind]
    assert 0.49 * whole <= after <= whole // 2
    assert (report.asked.kind, report.asked.value) == (kind, whole // 2)
    assert not report.asked.relative


def test_the_counted_macs_of_the_report_are_those_of_the_pruned_network() -> None:
    model = network()
    report = prune(model, EXAMPLE, macs=0.4)
    assert report.macs[1] == count_macs(model, EXAMPLE)
    assert report.params[1] == count_parameters(model)


def test_macs_are_counted_once_before_and_once_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    counted: list[int] = []

    def counting(model: nn.Module, example: torch.Tensor) -> int:
        counted.append(count_macs(model, example))
        return counted[-1]

    for name in ("prune", "budget"):
        module = sys.modules[f"vcompress.compress.pruning.{name}"]
        monkeypatch.setattr(module, "count_macs", counting)
    report = prune(network(), EXAMPLE, macs=0.5)
    assert len(counted) == len(set(counted)) == 2  # the whole, and one trial that fits
    assert report.macs == tuple(counted)


def test_the_size_of_the_exported_file_is_met() -> None:
    model = small()
    whole = 1000 + 4 * count_parameters(model)
    report = prune(model, EXAMPLE, "size_mb<=0.08", export=bytes_of)
    now = 1000 + 4 * count_parameters(model)
    assert 0.05 < now / 1e6 <= 0.08
    assert report.size_mb == (whole / 1e6, now / 1e6)
    assert report.achieved["size"] == now / whole
    assert count_parameters(small()) > count_parameters(model)


def test_a_real_onnx_file_is_within_its_size(tmp_path: Path) -> None:
    from vcompress.compress.pruning.prune import onnx_export

    model = small()
    report = prune(model, EXAMPLE, "size_mb<=0.09", round_to=1)
    onnx_export(EXAMPLE)(model, tmp_path / "model.onnx")
    size = (tmp_path / "model.onnx").stat().st_size / 1e6
    assert report.size_mb is not None
    assert size == report.size_mb[1]
    assert 0.087 < size <= 0.09


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("macs<=1e12", r"macs<=1000000000000: the network has .* macs already.* Ask for less"),
        ("size_mb<=900", r"size_mb<=900: the network has 0\.\d+ MB already"),
        ("params<=100", r"params<=100 cannot be met: .* of the params remains \(\d+ params\)"),
        ("size_mb<=0.001", r"size_mb<=0.001 cannot be met: .* of the size remains \(0\.\d+ MB\)"),
        ("latency_ms<=4", "latency has to be measured; call prune_to_latency"),
        ("top1>=0.97", "top1 is a result that is measured afterwards"),
    ],
)
def test_a_budget_that_cannot_be_cut_to_is_refused_and_nothing_changes(
    budget: str, message: str
) -> None:
    model = small()
    before = count_parameters(model)
    with pytest.raises(UserError, match=message):
        prune(model, EXAMPLE, budget, export=bytes_of)
    assert count_parameters(model) == before


def test_pruning_to_a_latency_refuses_another_cost() -> None:
    table = LatencyTable.open(None, lambda path: 1.0, {})
    with pytest.raises(
        UserError, match=r"macs<=0.5: this prunes to a latency; call prune for macs"
    ):
        prune_to_latency(small(), EXAMPLE, table, bytes_of, "macs<=0.5")


def test_functions_and_command_have_the_same_defaults() -> None:
    command = Config(macs=0.5)
    defaults = {
        name: parameter.default
        for function in (prune, analyse)
        for name, parameter in inspect.signature(function).parameters.items()
    }
    for name in ("importance", "scope", "round_to", "max_channel_ratio", "protect"):
        assert defaults[name] == getattr(command, name), name
    assert defaults["importance"] == "bn" and defaults["round_to"] == 8


def test_the_options_of_pruning_are_those_of_its_analysis() -> None:
    parameters = inspect.signature(analyse).parameters.values()
    assert set(PruneOptions.__annotations__) == {
        p.name for p in parameters if p.kind is p.KEYWORD_ONLY
    }


def test_the_commands_flags_and_its_budget_are_one_object() -> None:
    assert Config(macs=0.5).asked() == Config(budget="macs<=50%").asked() == parse("macs<=0.5")
    assert Config(latency_ms=4.0).asked() == Config(budget="latency_ms<=4").asked()
    assert Config(latency=0.5).asked() == Config(budget="latency<=0.5").asked()
    assert Config(drop_blocks=1).asked() is None


def chosen(budget: Budget, real: Callable[[int], float], round_to: int = 1) -> tuple[int, int]:
    """Units of one layer of 1,000 that are kept, and how many cuts were counted.

    A unit is predicted to cost 1,000 bytes or macs; n units really cost `real(n)`.
    """
    group = Group("layer", 1000, 1000, ())
    ladders = [ladder(group, round_to, 0.95)]
    model = CostModel(((1e6, (("layer", "out"),)),), 0.0, {("layer", "out"): (("layer", 1.0),)})
    counted: list[int] = []

    def count(cut: nn.Module) -> float:
        counted.append(count_parameters(cut))
        return real(counted[-1])

    found = choose(
        Meter(budget.kind, 1e6, model, count), budget, [group], ladders, uniform(ladders),
        lambda counts: nn.Linear(counts["layer"], 1, bias=False),
    )  # fmt: skip
    assert found.counted == real(found.counts["layer"])
    return found.counts["layer"], len(counted)


@pytest.mark.parametrize(
    "real",
    [
        lambda n: 1000.0 * n,
        lambda n: 1001.0 * n,  # a little more than was predicted
        lambda n: 1000.0 * n + 900,
        lambda n: 1019.0 * n,
        lambda n: 1500.0 * n,
        lambda n: 500.0 * n,
        lambda n: 1000.0 * n + 400_000,
        lambda n: 1000.0 * n + 449_000,
    ],
)
def test_a_size_is_never_gone_over_and_nearly_used_up(real: Callable[[int], float]) -> None:
    units, trials = chosen(parse("size_mb<=0.5"), real)
    assert 497_500 <= real(units) <= 500_000
    assert trials <= 10


def test_a_size_between_coarse_widths_takes_the_narrower_one() -> None:
    assert chosen(parse("size_mb<=0.4"), lambda n: 1001.0 * n, round_to=100)[0] == 300


def test_a_size_below_that_of_the_narrowest_widths_is_refused_with_that_size() -> None:
    with pytest.raises(UserError, match=r"size_mb<=0.5 cannot be met: .*0\.501 of .*0\.5015 MB"):
        chosen(parse("size_mb<=0.5"), lambda n: 1000.0 * n + 451_500)


def test_a_count_may_be_gone_over_by_two_per_cent_and_by_no_more() -> None:
    budget = Budget("macs", 0.5, relative=True)
    assert chosen(budget, lambda n: 1001.0 * n)[0] == 500
    with pytest.raises(UserError, match=r"macs = 0.5 cannot be met: .* at least 0\.52 of"):
        chosen(budget, lambda n: 1000.0 * n + 470_000)
    assert chosen(budget, lambda n: 1000.0 * n + 455_000)[0] == 50  # 1 % over
