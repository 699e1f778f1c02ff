"""`vcompress lint`: verdicts on the labelled graphs, hostile files, the command."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vcompress.bench.apart import Reply
from vcompress.bench.errors import UserError
from vcompress.compress.cli import main
from vcompress.export.lint import RULES, Report, lint, verdict_of
from vcompress.export.lint.docs import PAGE, page

sys.path.insert(0, str(Path(__file__).parent))

from lint_graphs import CASES, Case
from lint_graphs.net import FLOAT, INT8, UINT8, Net

BY_NAME = {case.name: case for case in CASES}
ROOT = Path(__file__).parents[2]
lint_module = import_module("vcompress.export.lint.lint")


def saved(model: onnx.ModelProto, tmp_path: Path, name: str = "model") -> Path:
    path = tmp_path / f"{name}.onnx"
    onnx.save(model, path)
    return path


def rules(report: Report) -> set[str]:
    return {f.rule for f in report.findings}


def test_the_labelled_set_has_enough_graphs_of_each_verdict() -> None:
    assert len(CASES) == len(BY_NAME) >= 130
    for verdict, least in (("blocked", 40), ("unverified", 8), ("likely", 60)):
        assert sum(case.verdict == verdict for case in CASES) >= least


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_labelled_graph_gets_its_verdict_and_its_finding(case: Case, tmp_path: Path) -> None:
    report = lint(saved(case.make(), tmp_path), "tensorrt-rtx", apart=False)
    assert report.verdict == case.verdict, report.findings
    if case.rule is None:
        assert not [f for f in report.findings if f.severity != "note"]
    else:
        assert case.rule in rules(report)
    for finding in report.findings:
        assert finding.message and finding.cure


@pytest.mark.parametrize(
    ("name", "node"),
    [("zero_point_3", "n_quantizelinear_3"), ("wrong_axis_conv", "n_conv_9")],
)
def test_a_finding_names_its_node(name: str, node: str, tmp_path: Path) -> None:
    report = lint(saved(BY_NAME[name].make(), tmp_path), apart=False)
    assert node in {f.node for f in report.findings}


def test_the_checker_in_a_process_of_its_own_says_the_same(tmp_path: Path) -> None:
    for name in ("undefined_tensor", "residual"):
        path = saved(BY_NAME[name].make(), tmp_path, name)
        here, apart = lint(path, apart=False), lint(path, apart=True)
        assert (here.verdict, here.findings) == (apart.verdict, apart.findings)


def test_external_data_outside_the_folder_is_refused_and_never_read(tmp_path: Path) -> None:
    model = BY_NAME["float_conv"].make()
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 4)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(9216))
    report = lint(saved(model, folder), apart=False)
    assert (report.verdict, rules(report)) == ("blocked", {"external-data"})


def test_external_data_beside_the_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = BY_NAME["zero_point_3"].make()
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, location="model.data")
    assert "zero-point" in rules(lint(path, apart=False))


@pytest.mark.parametrize("cut", [0, 1, 50, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_blocked(cut: float, tmp_path: Path) -> None:
    whole = BY_NAME["residual"].make().SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(whole[: int(cut * len(whole)) if cut < 1 else int(cut)])
    report = lint(path, apart=False)
    assert report.verdict == "blocked"
    assert rules(report) <= {"unreadable", "invalid"}


def _with_functions(calls: dict[str, list[str]], start: str) -> onnx.ModelProto:
    opset = [helper.make_opsetid("", 21), helper.make_opsetid("f", 1)]
    net = Net((1,))
    net.domains = {"f": 1}
    for name, called in calls.items():
        nodes = [
            helper.make_node(other, [f"t{i}"], [f"t{i + 1}"], domain="f" if other in calls else "")
            for i, other in enumerate(called)
        ]
        net.functions.append(
            helper.make_function("f", name, ["t0"], [f"t{len(called)}"], nodes, opset)
        )
    net.nodes.append(helper.make_node(start, ["x"], ["y"], domain="f", name="call"))
    return net.done("y", shape=(1,))


@pytest.mark.parametrize(
    "calls",
    [
        {"A": ["A"]},
        {"A": ["B"], "B": ["A"]},
        {"A": ["Relu"], **{f"A{i}": [f"A{i - 1}" if i else "A"] * 2 for i in range(40)}},
    ],
    ids=["itself", "each other", "a trillion nodes"],
)
def test_functions_without_end_are_refused_at_once(
    calls: dict[str, list[str]], tmp_path: Path
) -> None:
    path = saved_raw(calls, tmp_path)
    report = lint(path, apart=False)
    assert (report.verdict, rules(report)) == ("blocked", {"invalid"})
    assert report.seconds < 5


def test_a_function_that_holds_much_and_is_called_often_is_refused_at_once(tmp_path: Path) -> None:
    """64 kB, 8,000 times: half a gigabyte of nodes."""
    opset = [helper.make_opsetid("", 21), helper.make_opsetid("f", 1)]
    held = numpy_helper.from_array(np.zeros(16_384, np.float32))
    constant = helper.make_node("Constant", [], ["c"], value=held)
    added = helper.make_node("ReduceSum", ["c"], ["s"], keepdims=0)
    leaf = [constant, added, helper.make_node("Add", ["x", "s"], ["y"])]
    bodies = {"A": leaf}
    for name, inner in (("B", "A"), ("C", "B"), ("D", "C")):
        bodies[name] = [
            helper.make_node(
                inner, ["x" if i == 0 else f"t{i}"], ["y" if i == 19 else f"t{i + 1}"], domain="f"
            )
            for i in range(20)
        ]
    functions = [helper.make_function("f", n, ["x"], ["y"], b, opset) for n, b in bodies.items()]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("D", ["x"], ["y"], domain="f")], "g",
        [info("x", FLOAT, [1])], [info("y", FLOAT, [1])],
    )  # fmt: skip
    model = helper.make_model(graph, functions=functions, opset_imports=opset, ir_version=10)
    report = lint(saved(model, tmp_path), apart=False)
    assert (report.verdict, rules(report)) == ("blocked", {"invalid"})
    assert "256 MiB" in report.findings[0].message
    assert report.seconds < 5


def test_a_tensor_whose_values_do_not_fill_its_shape_is_a_finding(tmp_path: Path) -> None:
    model = BY_NAME["zero_point_3"].make()
    for tensor in model.graph.initializer:
        if not tensor.dims:
            tensor.raw_data += bytes(3)
    report = lint(saved(model, tmp_path), apart=False)
    assert (report.verdict, rules(report)) == ("blocked", {"invalid"})
    assert "cannot be read" in report.findings[0].message


def test_what_was_found_before_the_process_ended_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(BY_NAME["zero_point_3"].make(), tmp_path)
    whole = lint(path, apart=False)
    part = {"findings": [asdict(f) for f in whole.findings[:1]], "buildable": False}
    with monkeypatch.context() as patch:
        patch.setattr(lint_module, "ask", lambda *_: Reply((part,), -signal.SIGSEGV))
        report = lint(path)
    assert report.verdict == "blocked"
    assert report.findings[0] == whole.findings[0]
    assert [f.message for f in report.findings[1:]] == ["its process crashed (SIGSEGV)"]
    monkeypatch.setattr(lint_module, "TIMEOUT_S", 0.05)
    report = lint(path)
    assert (report.verdict, rules(report)) == ("unverified", {"checker-failed"})
    assert report.findings[0].message == "no answer within 0.05 s"


def saved_raw(calls: dict[str, list[str]], tmp_path: Path) -> Path:
    import unittest.mock

    # The set's own shape inference would follow the functions.
    with unittest.mock.patch.object(onnx.shape_inference, "infer_shapes", side_effect=ValueError):
        model = _with_functions(calls, list(calls)[-1])
    return saved(model, tmp_path)


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx", "onnxruntime"])
@pytest.mark.parametrize("apart", [True, False])
def test_a_shape_that_contradicts_the_values_behind_it_is_a_finding(
    target: str, apart: bool, tmp_path: Path
) -> None:
    """The checker lets it pass; only inference that follows values sees 6 into 42 parts."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Concat", ["s", "more"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"]),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", FLOAT, [2, 3])], [info("y", FLOAT, ["a", "b", "c", "d"])],
        [numpy_helper.from_array(np.array([7, -1]), "more")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    report = lint(saved(model, tmp_path), target, apart=apart)
    assert (report.verdict, rules(report)) == ("blocked", {"invalid"})


def test_onnx_runtime_opens_a_file_in_a_process_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    net = Net(dtype=TensorProto.BFLOAT16, opset=22)
    path = saved(net.done(net.conv("x", quantise=False)), tmp_path)
    here, apart = (lint(path, "onnxruntime", apart=apart) for apart in (False, True))
    assert here.findings == apart.findings
    assert rules(apart) >= {"no-kernel"}


def test_graphs_nested_without_end_are_refused(tmp_path: Path) -> None:
    def field(number: int, content: bytes) -> bytes:
        size, length = len(content), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    graph = b""
    for _ in range(2000):  # the graph in an attribute of a node of a graph
        graph = field(1, field(5, field(6, graph)))
    path = tmp_path / "deep.onnx"
    path.write_bytes(b"\x08\x08" + field(7, graph) + field(8, b"\x10\x11"))
    assert rules(lint(path, apart=False)) == {"unreadable"}


def test_damaged_files_never_end_in_a_traceback(tmp_path: Path) -> None:
    """Bytes changed at random: every one gets a verdict."""
    rng = np.random.default_rng(1)
    whole = BY_NAME["squeeze_excite"].make().SerializeToString()
    path = tmp_path / "damaged.onnx"
    verdicts = set()
    for _ in range(150):
        data = np.frombuffer(whole, np.uint8).copy()
        places = rng.integers(0, len(data) if rng.random() < 0.5 else 400, rng.integers(1, 6))
        data[places] = rng.integers(0, 256, len(places))
        path.write_bytes(data.tobytes())
        verdicts.add(lint(path, apart=False).verdict)
    assert verdicts <= {"blocked", "unverified", "likely"}
    assert "blocked" in verdicts


def test_a_missing_file_and_an_unknown_target_are_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        lint(tmp_path / "none.onnx")
    path = saved(BY_NAME["float_conv"].make(), tmp_path)
    with pytest.raises(UserError, match="Did you mean 'tensorrt'"):
        lint(path, "tensorr")


# ONNX Runtime's own rules.


def _for_onnxruntime(kind: int, zero: int, rounded_output: bool) -> onnx.ModelProto:
    net = Net()
    x = net.qdq("x", kind=kind, zero=zero)
    y = net.add("Relu", net.add("Conv", x, net.weight(16, 16, 3, 3)))
    return net.done(net.qdq(y, kind=kind, zero=zero) if rounded_output else y)


@pytest.mark.parametrize(
    ("kind", "zero", "rounded", "expected"),
    [
        (UINT8, 0, True, set()),
        (UINT8, 128, True, {"relu-zero-point"}),
        (UINT8, 0, False, {"not-fused"}),
        (INT8, 0, True, {"relu-zero-point"}),
    ],
)
def test_onnxruntime_rules(
    kind: int, zero: int, rounded: bool, expected: set[str], tmp_path: Path
) -> None:
    path = saved(_for_onnxruntime(kind, zero, rounded), tmp_path)
    report = lint(path, "onnxruntime", apart=False)
    assert {f.rule for f in report.findings if f.severity != "note"} == expected
    pytest.importorskip("onnxruntime")
    assert ("QLinearConv" in optimised(path)) == (not expected)


def optimised(path: Path) -> set[str]:
    """The operators that are left when ONNX Runtime has optimised a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".optimised.onnx"))
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return {n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node}


def test_a_file_that_onnxruntime_does_not_load_is_blocked(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    net = Net(dtype=TensorProto.BFLOAT16, opset=22)
    path = saved(net.done(net.conv("x", quantise=False)), tmp_path)
    report = lint(path, "onnxruntime", apart=False)
    assert (report.verdict, "no-kernel" in rules(report)) == ("blocked", True)


# What the checker refuses and runtimes do not.


def _declared(name: str) -> onnx.ModelProto:
    """Files that ONNX Runtime runs, each with one thing that is declared wrong or not at all."""
    info = helper.make_tensor_value_info
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Sqrt", ["m"], ["y"])]
    between, into, out = [info("m", FLOAT, [3, 3])], [3, 4], [3, 3]
    match name:
        case "value_info":
            between = [info("m", FLOAT, [3, 4])]
        case "output":
            out = [3, 5]
        case "output without a shape":
            out = None
        case "input without a shape":
            into = None
        case "import":
            nodes[1] = helper.make_node("Gelu", ["m"], ["y"], domain="com.microsoft")
    graph = helper.make_graph(
        nodes, "g", [info("x", FLOAT, into)], [info("y", FLOAT, out)],
        [numpy_helper.from_array(np.ones((4, 3), np.float32), "w")], value_info=between,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("value_info", "declared-shape"), ("output", "declared-shape"),
        ("output without a shape", "declared-shape"), ("input without a shape", "declared-shape"),
        ("import", "missing-import"),
    ],
)  # fmt: skip
def test_what_is_declared_wrong_is_a_warning_where_the_file_runs(
    name: str, rule: str, apart: bool, tmp_path: Path
) -> None:
    ort = pytest.importorskip("onnxruntime")
    path = saved(_declared(name), tmp_path)
    with pytest.raises((onnx.checker.ValidationError, onnx.shape_inference.InferenceError)):
        onnx.checker.check_model(str(path), full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options)
    assert session.run(None, {"x": np.ones((3, 4), np.float32)})[0].shape == (3, 3)
    report = lint(path, "onnxruntime", apart=apart)
    assert (report.verdict, rules(report)) == ("likely", {rule})
    if name != "import":
        assert lint(path, "tensorrt-rtx", apart=False).verdict == "likely"


def test_a_file_of_onnx_runtimes_own_optimiser_is_likely(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    net = Net()
    path = saved(net.done(net.add("Relu", net.conv("x", quantise=False))), tmp_path)
    optimised(path)
    report = lint(path.with_suffix(".optimised.onnx"), "onnxruntime", apart=False)
    assert (report.verdict, rules(report)) == ("likely", set())


def test_each_tensorrt_has_its_own_operators(tmp_path: Path) -> None:
    path = saved(BY_NAME["non_zero"].make(), tmp_path)
    assert lint(path, "tensorrt-rtx", apart=False).verdict == "blocked"
    assert "unsupported-operator" not in rules(lint(path, "tensorrt", apart=False))


def test_an_opset_says_nothing_about_onnx_runtime(tmp_path: Path) -> None:
    net = Net()
    model = net.done(net.add("Relu", "x"))
    model.opset_import[0].version = 6
    model.ir_version = 3
    path = saved(model, tmp_path)
    assert "opset" in rules(lint(path, "tensorrt", apart=False))
    assert lint(path, "onnxruntime", apart=False).verdict == "likely"


def test_a_foreign_operator_with_a_standard_name_is_no_standard_operator(tmp_path: Path) -> None:
    net = Net()
    y = net.conv("x")
    for name in ("Conv", "QuantizeLinear", "MatMul", "BatchNormalization"):
        node = helper.make_node(name, [y], [f"{name}_out"], domain="other")
        net.nodes.append(node)
        y = f"{name}_out"
    net.domains = {"other": 1}
    report = lint(saved(net.done(y), tmp_path), "tensorrt-rtx", apart=False)
    assert (report.verdict, sum(f.rule == "custom-domain" for f in report.findings)) == (
        "unverified", 4,
    )  # fmt: skip


def test_a_rule_is_headed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Findings of two rules come in turns, layer by layer."""
    net = Net()
    y = "x"
    for _ in range(4):
        y = net.add("Conv", net.qdq(y, zero=3), net.weight(16, 16, 3, 3))
    run("lint", str(saved(net.done(y), tmp_path)), "--fail-on", "never")
    out = capsys.readouterr().out
    heads = [line for line in out.splitlines() if line.startswith(("error ", "warning ", "note "))]
    assert "error zero-point" in out
    assert len(heads) == len(set(heads)) == len({line.split()[1] for line in heads})


def test_an_open_axis_asks_for_a_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx")
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g", [info("x", FLOAT, [1, "length", 4])],
        [info("y", FLOAT, [1, "length", 4])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = saved(model, tmp_path)
    assert run("lint", str(path), "--build") == 1
    assert "axis 1 of input x: give --shape x=1x...x4" in capsys.readouterr().out
    assert run("lint", str(path), "--build", "--shape", "x=1x7x4") == 0
    assert "VERIFIED" in capsys.readouterr().out


# The verdict and the command.


def test_verdicts_follow_from_effects() -> None:
    path = "x"
    assert verdict_of([]) == "likely"
    assert not Report(path, "tensorrt", "likely", ()).fails("warning")
    assert Report(path, "tensorrt", "blocked", ()).fails("error")
    assert not Report(path, "tensorrt", "blocked", ()).fails("never")


@pytest.mark.parametrize(
    ("name", "fail_on", "status"),
    [
        ("residual", "warning", 0),
        ("wrong_axis_conv", "error", 0),
        ("wrong_axis_conv", "warning", 1),
        ("zero_point_3", "error", 1),
        ("zero_point_3", "never", 0),
    ],
)
def test_the_command_prints_the_verdict_and_ends_with_the_status(
    name: str, fail_on: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(BY_NAME[name].make(), tmp_path)
    assert run("lint", str(path), "--fail-on", fail_on) == status
    out = capsys.readouterr().out
    assert BY_NAME[name].verdict.upper() in out
    assert (BY_NAME[name].rule or "0 errors") in out


def run(*argv: str) -> int:
    try:
        return main(argv)
    except SystemExit as end:
        return int(end.code or 0)


def test_json_holds_every_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(BY_NAME["zero_point_3"].make(), tmp_path)
    assert run("lint", str(path), "--json", "-") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["target"]) == ("blocked", "tensorrt")
    assert {f["rule"] for f in found["findings"]} == {"zero-point"}
    assert {"severity", "node", "message", "cure"} <= set(found["findings"][0])


def test_the_page_of_the_rules_is_made_from_them() -> None:
    written = (ROOT / PAGE).read_text(encoding="utf-8")
    assert page(written) == written, "run: python -m vcompress.export.lint.docs"
    for rule in RULES:
        assert f"`{rule}`" in written


# Held against builds. TensorRT-RTX builds on a machine with no GPU.


@pytest.mark.parametrize(("name", "verdict"), [("residual", "verified"), ("non_zero", "blocked")])
def test_build_makes_the_verdict_sure(
    name: str, verdict: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    path = saved(BY_NAME[name].make(), tmp_path)
    assert run("lint", str(path), "--build") == (verdict == "blocked")
    out = capsys.readouterr().out
    assert verdict.upper() in out
    assert ("for SM 89" in out) == (verdict == "verified")


@pytest.mark.slow
@pytest.mark.parametrize("which", [[], ["--conformance"]], ids=["labelled", "conformance"])
def test_no_graph_that_is_called_likely_fails_to_build(which: list[str]) -> None:
    pytest.importorskip("tensorrt_rtx")
    script = ROOT / "tests" / "benchmarks" / "lint_against_builds.py"
    done = subprocess.run(
        [sys.executable, str(script), *which], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_values_of_a_small_scale_survive_the_round_trip_of_the_set() -> None:
    """The set's own helper: float8 and int4 constants hold what they should."""
    net = Net()
    name = net.weight(4, 2, axis=None, kind=TensorProto.FLOAT8E4M3FN)
    assert name.startswith("dequantizelinear")
    kinds = {t.data_type for t in net.constants}
    assert TensorProto.FLOAT8E4M3FN in kinds
    assert numpy_helper.to_array(net.constants[0]).shape == (4, 2)
    assert FLOAT in kinds
