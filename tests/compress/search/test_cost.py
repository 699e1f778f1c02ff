"""What a candidate costs: counted and timed untrained, kept for the next call, held to budgets."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from vcompress.bench.errors import EnvironmentLacks, UserError
from vcompress.bench.gates.limits import parse
from vcompress.compress.cli import main
from vcompress.compress.models.catalogue import build, make_spec
from vcompress.compress.models.cost import count_macs
from vcompress.compress.pipeline import measure
from vcompress.compress.search import cost as costs
from vcompress.compress.search.candidate import Candidate, make
from vcompress.compress.search.cost import Cost, check_budget, estimate, graph_digest, verdict

SMALL = Candidate(model="mnv3s", classes=10, size=(32, 32))
KNOWN = Cost(1_000_000, 500_000, 2.0, 1.0, 0.9, 1.1, True, "onnxruntime", 1, "a cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "LATENCY_SECONDS", 0.1)


def test_a_candidate_is_pruned_and_quantised_as_it_would_ship(tmp_path: Path) -> None:
    whole = count_macs(build(make_spec("mnv3s", 10, (32, 32))), torch.zeros(1, 3, 32, 32))
    made = make(replace(SMALL, macs=0.5, precision="int8"), tmp_path / "m.onnx")
    assert 0.4 * whole < made.macs <= 0.5 * whole
    graph = onnx.load(str(tmp_path / "m.onnx")).graph
    stored = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert sum(len(t.raw_data) for t in stored) > 0.9 * made.parameters - 20_000
    assert tuple(made.images.shape[1:]) == (3, 32, 32)


def test_the_digest_is_of_the_graph_and_not_of_its_weights(tmp_path: Path) -> None:
    for seed in (0, 1):
        make(SMALL, tmp_path / f"{seed}.onnx", seed)
    make(replace(SMALL, classes=11), tmp_path / "other.onnx")
    first, second, other = (graph_digest(tmp_path / f"{n}.onnx") for n in ("0", "1", "other"))
    assert first == second != other
    assert (tmp_path / "0.onnx").read_bytes() != (tmp_path / "1.onnx").read_bytes()


def test_a_latency_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, calls = tmp_path / "deep" / "costs.sqlite", []
    plain = measure.latency

    def counted(*given: Any, **named: Any) -> Any:
        calls.append(named)
        return plain(*given, **named)

    monkeypatch.setattr(measure, "latency", counted)
    first, _ = estimate(SMALL, store=store)
    again, _ = estimate(SMALL, store=store)
    assert len(calls) == 1 and not first.kept and again == replace(first, kept=True)
    assert first.size_mb == pytest.approx(first.params * 4 / 1e6, rel=0.05)
    assert 0 < first.low_ms <= first.latency_ms <= first.high_ms
    estimate(SMALL, threads=2, store=store)  # another number of threads is another latency
    assert len(calls) == 2
    with sqlite3.connect(store) as opened:
        opened.execute('UPDATE costs SET cost = \'{"of": "a later version"}\'')
    estimate(SMALL, store=store)
    assert len(calls) == 3


def test_a_limit_inside_the_interval_is_undecided_and_measured_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert verdict(KNOWN, parse("latency_ms<=1.1")) == "keeps"
    assert verdict(KNOWN, parse("latency_ms<=0.8")) == "breaks"
    assert verdict(KNOWN, parse("latency_ms<=1")) == "undecided"
    assert verdict(KNOWN, parse("macs<=2e6")) == verdict(KNOWN, parse("size_mb<=2")) == "keeps"
    spent: list[float] = []

    def measured(made: Any, file: Path, runtime: Any, threads: int, times: float) -> Cost:
        spent.append(times)
        return KNOWN if len(spent) < 3 else replace(KNOWN, low_ms=0.93, high_ms=0.97)

    monkeypatch.setattr(costs, "_measured", measured)
    found, verdicts = estimate(SMALL, [parse("latency_ms<=1")], store=tmp_path / "c")
    assert spent == [1, 2, 4] and verdicts == {"latency_ms<=1": "keeps"} and found.high_ms == 0.97


@pytest.mark.parametrize("text", ["top1>=0.9", "latency<=0.5", "macs<=0.5", "p99_ms<=3"])
def test_a_budget_that_no_cost_answers_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="a cost alone does not tell; expected one of latency_ms"):
        check_budget(parse(text))


def test_the_command_says_what_it_costs_and_ends_with_1_beyond_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["estimate", "--student", "mnv3s", "--classes", "10", "--image-size", "32", "--cache",
             "costs.sqlite"]  # fmt: skip
    assert main([*given, "--budget", "latency_ms<=1e5", "size_mb<=50", "--json", "cost.json"]) == 0
    said = capsys.readouterr().out
    assert "keeps       latency_ms<=100000" in said and "MACs" in said
    found = json.loads(Path("cost.json").read_text())
    assert found["budgets"] == {"latency_ms<=100000": "keeps", "size_mb<=50": "keeps"}
    assert found["candidate"]["size"] == [32, 32]
    assert main([*given, "--budget", "latency_ms<=1e-4"]) == 1
    assert "not within the budget: latency_ms<=0.0001: breaks" in capsys.readouterr().err
    Path("folder.sqlite").mkdir()
    assert main([*given[:-1], "folder.sqlite"]) == 2
    assert "cannot be used as the store of costs" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_runtime_of_the_target_is_what_measures(precision: Any, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    found, _ = estimate(replace(SMALL, target="openvino", precision=precision))
    assert found.runtime == "openvino"
    with pytest.raises(EnvironmentLacks, match="cannot be measured here: TensorRT runs engines"):
        estimate(replace(SMALL, model="never built", target="tensorrt", precision=precision))
