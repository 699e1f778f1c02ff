"""Gate, baseline and every form of output, on one measured result."""

from __future__ import annotations

import hashlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest
from rich.console import Console

import vcompress.bench
from vcompress.bench.errors import UserError
from vcompress.bench.gates import baseline, gate
from vcompress.bench.gates.limits import parse
from vcompress.bench.reports import ci as report_ci
from vcompress.bench.reports import html as report_html
from vcompress.bench.reports import json as report_json
from vcompress.bench.reports import restate as other
from vcompress.bench.reports import terminal
from vcompress.bench.reports.console import Shown
from vcompress.bench.reports.result import Check, ModelResult, Result, artefact
from vcompress.bench.runtimes.session import Facts, Node
from vcompress.bench.stats import Interval, verdict
from vcompress.bench.tasks.classification import TASK
from vcompress.bench.tasks.scoring import evaluated
from vcompress.bench.tasks.task import Score
from vcompress.bench.timing.compare import Block, Blocks, Comparison, noise_floor
from vcompress.bench.timing.environment import Disturbance, preflight
from vcompress.bench.timing.fresh import ColdStart
from vcompress.bench.timing.measure import Measurement, Warmup

SCHEMA = json.loads((Path(vcompress.bench.__path__[0]) / "reports/schema.json").read_text())
LABELS = np.arange(100) % 10


def measurement(path: Path, level_ms: float) -> Measurement:
    rng = np.random.default_rng(0)
    samples = (level_ms * 1e6 * rng.normal(1, 0.01, 1000)).astype(np.int64)
    return Measurement(
        path=path,
        facts=Facts("onnxruntime", "1", "cpu", "CPUExecutionProvider",
                    {"intra_op_num_threads": 1}),
        shapes={"x": (1, 3, 32, 32)}, inputs_from="random", ring=64, samples_ns=samples,
        starts_ns=np.arange(1000) * int(level_ms * 1.1e6), load_ms=20.0, first_run_ms=2.0,
        warmup=Warmup(100, 1.0, True, (level_ms,) * 5), stopped="precision",
    )  # fmt: skip


def scored(wrong: int) -> Score:
    predictions = LABELS.copy()
    predictions[:wrong] = (predictions[:wrong] + 1) % 10
    scores = np.eye(10, dtype=np.float32)[predictions]
    return evaluated(TASK, scores, LABELS, [f"class {i}" for i in range(10)]).compute("images")


def blocks(path: Path, ratio: float) -> Blocks:
    first = np.full((10, 2), 1e6) * np.linspace(1, 1.002, 10)[:, None]
    run = Block(np.array([0]), np.array([1]))
    return Blocks(first, first * ratio, (run,), (run,))


@pytest.fixture
def result(models: Path) -> Result:
    """Two models: B takes 0.8 ms against 1 ms and has 6 of 100 images wrong against 2."""
    out = []
    for name, level, wrong in (("classifier", 1.0, 2), ("half", 0.8, 6)):
        path = models / f"{name}.onnx"
        out.append(
            ModelResult(
                artefact(path, name),
                measurement(path, level),
                Disturbance(0.0, 0.1, 0),
                ("a <b>warning</b> & more",),
                harness_ns=5000.0,
                cold_start=ColdStart(30.0, 20.0, 2.0, 90_000_000, 12_000_000),
                accuracy=scored(wrong),
                profile=(Node("conv", "Conv", "CPU", 100.0, 0.5),),
            )
        )
    pairs, again = blocks(models, 0.8), blocks(models, 1.0)
    ratio, wide = pairs.ratio(), pairs.ratio(0.99)
    comparison = Comparison(
        pairs, out[0].measurement, out[1].measurement, ratio, wide, again, again.ratio(),
        noise_floor(again.ratio()), verdict(ratio, 0.001, strict=wide), 0.01, 9.0,
    )  # fmt: skip
    assert out[0].accuracy
    assert out[1].accuracy
    return Result(
        tuple(out), preflight(), ("vbench", "a", "b"), "0.1.0", "2026-01-01T00:00:00+00:00",
        comparison, TASK.compare(out[0].accuracy, out[1].accuracy), notes=("a note",),
    )  # fmt: skip


def alone(result: Result) -> Result:
    return replace(result, models=result.models[:1], comparison=None, change=None)


@pytest.mark.parametrize(
    ("limits", "outcome"),
    [
        ({"max_p50_ms": 0.9}, "pass"),
        ({"max_p50_ms": 0.5}, "fail"),
        ({"max_p50_ms": 0.7994}, "inconclusive"),  # the interval holds the limit
        ({"max_p99_ms": 1.0}, "pass"),
        ({"max_size_mb": 0.000001}, "fail"),
        ({"max_memory_mb": 20.0}, "pass"),
        ({"min_top1": 0.5}, "pass"),
        ({"min_top1": 0.99}, "fail"),
        ({"min_top1": 0.94}, "inconclusive"),  # the point holds, the bound does not
        ({"max_top1_drop": 0.2}, "pass"),
        ({"max_top1_drop": 0.04}, "inconclusive"),
        ({"max_negative_flips": 0.001}, "fail"),
        ({"max_slowdown": 1.0}, "pass"),
        ({"max_slowdown": 0.5}, "fail"),
    ],
)
def test_a_gate_is_decided_on_the_intervals_bound(
    result: Result, limits: dict[str, float], outcome: str
) -> None:
    (check,) = gate.check(gate.Gate(**limits), result)
    assert check.outcome == outcome
    assert check.name in limits


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("latency_ms<=0.9", "pass"),
        ("latency_ms<=0.5", "fail"),
        ("latency_ms<=0.7994", "inconclusive"),
        ("p99_ms<=1", "pass"),
        ("size_mb<=0.000001", "fail"),
        ("size<=0.0001", "fail"),
        ("memory_mb<=20", "pass"),
        ("memory<=99%", "fail"),
        ("top1>=0.94", "inconclusive"),
        ("top1_drop<=0.04", "inconclusive"),
        ("negative_flips<=0.001", "fail"),
        ("latency<=0.9", "pass"),
        ("latency<=0.5", "fail"),
        ("slowdown<=1", "pass"),
        ("speedup>=1.2", "pass"),
        ("speedup>=1.3", "fail"),
    ],
)
def test_a_limit_as_text_is_decided_as_its_key_is(result: Result, text: str, outcome: str) -> None:
    (check,) = gate.check(gate.Gate(limits=(text,)), result)
    assert check.outcome == outcome
    assert check.name == parse(text).text


def test_a_limit_and_its_key_give_the_same_check(result: Result) -> None:
    key, text = gate.check(gate.Gate(max_p50_ms=0.7994, limits=("latency_ms<=0.7994",)), result)
    assert replace(text, name=key.name) == key


def test_limits_of_the_file_and_of_the_command_line_are_all_held(
    result: Result, tmp_path: Path
) -> None:
    file = tmp_path / "gate.toml"
    file.write_text('max_size_mb = 1\nlimits = ["latency_ms<=4", "top1>=0.5"]\n')
    asked = gate.asked(file, ("p99_ms<=9",))
    assert asked is not None
    names = [check.name for check in gate.check(asked, result)]
    assert names == ["max_size_mb", "latency_ms<=4", "top1>=0.5", "p99_ms<=9"]
    assert gate.asked(None, ()) is None


@pytest.mark.parametrize("text", ["slowdown<=1", "size<=50%", "top1>=0.5", "memory_mb<=9"])
def test_a_text_that_was_not_measured_never_passes(result: Result, text: str) -> None:
    bare = alone(result)
    bare = replace(bare, models=(replace(bare.models[0], accuracy=None, cold_start=None),))
    with pytest.raises(UserError, match=f"The gate asks for {parse(text).text}"):
        gate.check(gate.Gate(limits=(text,)), bare)


@pytest.mark.parametrize("name", ["max_slowdown", "max_top1_drop", "min_top1", "max_memory_mb"])
def test_a_guard_that_was_not_measured_never_passes(result: Result, name: str) -> None:
    bare = alone(result)
    bare = replace(bare, models=(replace(bare.models[0], accuracy=None, cold_start=None),))
    with pytest.raises(UserError, match=r"The gate asks"):
        gate.check(gate.Gate(**{name: 0.5}), bare)


def test_a_withheld_percentile_is_inconclusive(result: Result) -> None:
    few = result.models[0].measurement
    few = replace(few, samples_ns=few.samples_ns[:100], starts_ns=few.starts_ns[:100])
    short = replace(alone(result), models=(replace(result.models[0], measurement=few),))
    (check,) = gate.check(gate.Gate(max_p99_ms=100.0), short)
    assert check.outcome == "inconclusive"


@pytest.mark.parametrize(
    ("runs", "outcome"), [(1, "inconclusive"), (4, "inconclusive"), (6, "pass")]
)
def test_a_gate_needs_runs_enough_for_an_interval(result: Result, runs: int, outcome: str) -> None:
    few = result.models[0].measurement
    few = replace(few, samples_ns=few.samples_ns[:runs], starts_ns=few.starts_ns[:runs])
    short = replace(alone(result), models=(replace(result.models[0], measurement=few),))
    (check,) = gate.check(gate.Gate(max_p50_ms=100.0), short)
    assert check.outcome == outcome
    said = terminal.rows(short.models[0])["latency, median"]
    assert ("run" in said) == (outcome == "inconclusive")


def test_a_ratio_of_too_few_runs_is_shown_without_an_interval(result: Result) -> None:
    assert result.comparison
    one = Interval(1.367, 1.367, 1.367, "one value", 0.0)
    few = replace(result.comparison, ratio=one, verdict="INCONCLUSIVE")
    line = terminal.versus_line(replace(result, comparison=few))
    assert line is not None
    assert "takes 1.367 times as long as classifier: not enough to say" in line.plain


def test_the_weights_of_openvinos_format_count(tmp_path: Path) -> None:
    (tmp_path / "net.xml").write_bytes(b"<net/>")
    alone = artefact(tmp_path / "net.xml", "net")
    (tmp_path / "net.bin").write_bytes(bytes(1000))
    both = artefact(tmp_path / "net.xml", "net")
    assert (alone.size_bytes, both.size_bytes) == (6, 1006)
    assert both.sha256 == hashlib.sha256(b"<net/>" + bytes(1000)).hexdigest()


def test_a_file_that_was_hashed_already_is_not_hashed_again(tmp_path: Path) -> None:
    (tmp_path / "net.engine").write_bytes(b"engine")
    known = "ab" * 32  # no hash of it: this one is taken on trust
    found = artefact(tmp_path / "net.engine", "net", known)
    assert (found.sha256, found.size_bytes) == (known, 6)
    (tmp_path / "net.xml").write_bytes(b"<net/>")
    (tmp_path / "net.bin").write_bytes(b"weights")
    both = artefact(tmp_path / "net.xml", "net", known)  # the known one is of a part
    assert both.sha256 == hashlib.sha256(b"<net/>weights").hexdigest()


@pytest.mark.parametrize(
    ("text", "message"),
    [("max_p50 = 1", "Did you mean 'max_p50_ms'"), ("", "asks for nothing"),
     ("max_p50_ms = ", "no valid TOML"), ("min_top1 = 76.1", "a share from 0 to 1"),
     ("max_p50_ms = 'fast'", "expected"), ("max_p99_ms = -1", "max_p99_ms = -1.*0 or more"),
     ("limits = ['latncy_ms<=4']", "Did you mean 'latency_ms'"),
     ("limits = []", "asks for nothing"),
     ("limits = ['macs<=0.5']", "macs<=0.5: vbench measures files"),
     ("limits = 'latency_ms<=4'", "expected a list")],
)  # fmt: skip
def test_a_gate_file_with_a_mistake_says_which(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "gate.toml").write_text(text)
    with pytest.raises(UserError, match=message):
        gate.read(tmp_path / "gate.toml")


def test_the_json_is_what_the_schema_says(result: Result, tmp_path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    checks = gate.check(gate.Gate(max_p50_ms=0.9, max_p99_ms=0.1), result)
    for case in (replace(result, checks=checks), replace(alone(result), sweep=result.models)):
        report_json.write(case, tmp_path / "r.json")
        jsonschema.validate(json.loads((tmp_path / "r.json").read_text()), SCHEMA)


def test_every_sample_is_in_the_json(result: Result) -> None:
    found = report_json.as_dict(result)["models"][0]
    assert found["samples_ns"] == result.models[0].measurement.samples_ns.tolist()
    assert found["latency_ms"]["p99"]["value"] > found["latency_ms"]["p50"]["value"]
    assert found["latency_ms"]["p99.9"] is None


def saved(result: Result, folder: Path, **changes: Any) -> baseline.Saved:
    data = report_json.as_dict(alone(result))
    for path, value in changes.items():
        spot = data
        *parents, last = path.split("__")
        for key in parents:
            spot = spot[int(key) if key.isdigit() else key]
        spot[last] = value
    (folder / "saved.json").write_text(json.dumps(data))
    return baseline.read(folder / "saved.json")


def test_a_saved_result_is_compared_with_what_two_runs_may_differ_by(
    result: Result, tmp_path: Path
) -> None:
    then = saved(result, tmp_path)
    same = baseline.against(then, result.models[0], result.environment, 0.01)
    assert same.ratio.value == pytest.approx(1)
    assert same.verdict == "EQUIVALENT"
    found = baseline.against(then, result.models[1], result.environment, 0.01)
    assert found.verdict == "FASTER"
    assert found.ratio.value == pytest.approx(0.8, rel=0.01)
    change = baseline.change(then, result.models[1])
    assert change is not None
    assert change.difference == pytest.approx(-0.04)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"environment__cpu_model": "Another"}, "environment.cpu_model"),
        ({"environment__cpus_allowed": [0, 1, 2, 3, 4, 5, 6, 7]}, "environment.cpus_allowed"),
        ({"models__0__runtime__version": "0.1"}, "runtime.version"),
        ({"models__0__runtime__options": {}}, "runtime.options"),
        ({"models__0__workload__shapes": {"x": [8, 3, 32, 32]}}, "workload.shapes"),
    ],
)
def test_a_baseline_from_other_conditions_is_refused_and_the_field_is_named(
    result: Result, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    then = saved(result, tmp_path, **change)
    with pytest.raises(UserError, match=re.escape(named)):
        baseline.against(then, result.models[0], result.environment, 0.01)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema_version": 99}', '{"schema_version": 1, "models": []}',
             '{"schema_version": 1, "models": [1]}'],
)  # fmt: skip
def test_a_baseline_that_vbench_did_not_write_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(UserError, match="--baseline"):
        baseline.read(tmp_path / "b.json")


def test_junit_has_a_case_for_each_check(result: Result) -> None:
    checks = gate.check(gate.Gate(max_p50_ms=0.5, min_top1=0.94, max_slowdown=1.0), result)
    odd = replace(result.models[1].artefact, name="m<o>\x01del")
    models = (result.models[0], replace(result.models[1], artefact=odd))
    root = ElementTree.fromstring(report_ci.junit(replace(result, models=models, checks=checks)))
    suite = root.find("testsuite")
    assert suite is not None
    assert {k: suite.get(k) for k in ("tests", "failures", "errors")} == {
        "tests": "3", "failures": "1", "errors": "1",
    }  # fmt: skip
    assert [c.get("name") for c in suite.iter("testcase")] == [c.name for c in checks]


def test_the_markdown_summary_has_the_table_the_verdict_and_the_gate(result: Result) -> None:
    checks = gate.check(gate.Gate(max_p50_ms=0.5), result)
    text = report_ci.markdown(replace(result, checks=checks))
    assert "| latency, median | 0.9993 ms (0.9985 to 1.0000) |" in text
    assert "**FASTER" in text
    assert "| max_p50_ms | **FAILED** |" in text
    assert "[dim]" not in text


def test_the_page_needs_no_network_and_shows_the_plots(result: Result) -> None:
    page = report_html.page(result)
    assert not re.search(r"(src|href)\s*=|https?://|url\(|<script", page)
    assert page.count("<svg") == 3  # histogram and series together, the ratios
    assert "a &lt;b&gt;warning&lt;/b&gt; &amp; more" in page
    assert "<b>warning" not in page
    assert "class 3" in page
    ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])


HOSTILE = "\x1b]0;PWN\x07\x1b[2J\u202e<img src=x onerror=y>[red]m[/red][link=http://e]c[/link]`|"


@pytest.fixture
def hostile(result: Result) -> Result:
    """The result with a name, a warning, a node and a check that would steer what shows them."""
    node = Node(HOSTILE, HOSTILE, "CPUExecutionProvider", 1.0, 1.0)
    models = tuple(
        replace(m, artefact=replace(m.artefact, name=HOSTILE), warnings=(HOSTILE,), profile=(node,))
        for m in result.models
    )
    checks = (Check(HOSTILE, 1.0, 2.0, 2.0, "fail", HOSTILE),)
    return replace(result, models=models, notes=(HOSTILE,), checks=checks)


def test_a_terminal_is_not_steered_by_names(hostile: Result) -> None:
    stream = io.StringIO()
    terminal.show(hostile, Shown(file=stream, width=400, force_terminal=True))
    said = stream.getvalue()
    assert "[red]m[/red][link=http://e]c[/link]" in said
    assert "\x1b]" not in said and "\x1b[2J" not in said and "\u202e" not in said
    assert "\x1b[1m" in said  # its own colours are there


def test_no_page_and_no_summary_takes_a_name_for_more_than_text(hostile: Result) -> None:
    for text in (report_html.page(hostile), report_ci.markdown(hostile), report_ci.junit(hostile)):
        assert not set("\x1b\x07\u202e") & set(text)
        assert "<img" not in text
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert f'content="{policy}"' in report_html.page(hostile)
    markdown = report_ci.markdown(hostile)
    assert markdown.count("\\[link=http://e\\]c\\[/link\\]\\`\\|") >= 6
    assert "[link" not in markdown.replace("\\[link", "")
    assert ElementTree.fromstring(report_ci.junit(hostile)).find(".//failure") is not None


def test_the_terminal_says_it_in_a_few_lines(result: Result) -> None:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    terminal.show(result, console)
    text = console.export_text()
    assert "half is 1.25 times as fast as classifier" in text
    assert "negative flips 4.00%" in text
    assert "warning: half: a <b>warning</b> & more" in text


def test_one_trace_in_the_terms_of_other_tools(result: Result) -> None:
    model = result.models[0]
    ms = np.sort(model.measurement.samples_ns) / 1e6
    said = other.restate(model, "trtexec10")
    assert f"percentile(99%) = {ms[989]:.6g} ms" in said  # 1000 - 1 - int(0.01 * 1000)
    assert f"median = {np.median(ms):.6g} ms" in said
    assert f"P99 Latency: {ms[990] / 1e3:.6g} s" in other.restate(model, "perf_test")
    assert f"Median:           {ms[499]:.2f} ms" in other.restate(model, "benchmark_app")
    assert "precision in the file: float32" in other.restate(model, "trtexec11")
    with pytest.raises(UserError, match="Did you mean 'perf_test'"):
        other.restate(model, "perftest")


def test_two_medians_of_their_own_give_a_ratio_that_covers_both_intervals() -> None:
    a, b = Interval(1.0, 0.9, 1.1, ""), Interval(2.0, 1.9, 2.1, "")
    found = baseline.ratio_of(a, b)
    assert found.value == 2
    assert found.low < 2 * 0.95
    assert found.high > 2 * 1.05
