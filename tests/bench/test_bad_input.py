"""Files that are damaged, hostile or of another kind: one message, status 2, and it ends."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

from vcompress.bench import apart, cli
from vcompress.bench.apart import MARK
from vcompress.bench.errors import UserError
from vcompress.bench.timing import fresh


def write(path: Path, model: object) -> Path:
    path.write_bytes(model.SerializeToString())  # type: ignore[attr-defined]
    return path


def identity(operator: str = "Identity", opset: int = 17, domain: str = "") -> object:
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"], domain=domain)], "g",
        [helper.make_tensor_value_info("x", 1, [1, 4])],
        [helper.make_tensor_value_info("y", 1, [1, 4])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def refused(path: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    status = cli.main([str(path), "--seconds", "0.1", "--threads", "1", *flags])
    out, err = capsys.readouterr()
    assert status == 2, (out, err)
    assert "Traceback" not in out + err
    assert len(err.strip().splitlines()) == 1
    return err


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty file"), (b"\x00" * 64, "not a whole ONNX file"),
     (b"%PDF-1.7 and so on", "not a whole ONNX file"), (b"\x80\x04\x95pickle", "not a whole")],
)  # fmt: skip
def test_a_file_that_is_no_onnx(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    assert message in refused(tmp_path / "m.onnx", capsys)


def test_a_file_that_was_cut(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = (models / "classifier.onnx").read_bytes()
    (tmp_path / "m.onnx").write_bytes(data[: len(data) // 2])
    assert "not a whole ONNX file" in refused(tmp_path / "m.onnx", capsys)


def test_an_unknown_operator_or_opset_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "op.onnx", identity("Frobnicate", domain="my.domain"))
    assert "Frobnicate" in refused(path, capsys)
    path = write(tmp_path / "opset.onnx", identity(opset=99))
    assert "99" in refused(path, capsys)


def test_external_data_outside_the_folder_is_refused_before_a_runtime_sees_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from onnx.external_data_helper import set_external_data

    tensor = numpy_helper.from_array(np.ones((1, 4), np.float32), "w")
    set_external_data(tensor, "../../../etc/hostname")
    tensor.ClearField("raw_data")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", 1, [1, 4])],
        [helper.make_tensor_value_info("y", 1, [1, 4])], [tensor],
    )  # fmt: skip
    path = write(tmp_path / "m.onnx", helper.make_model(graph))
    assert "outside the model's folder" in refused(path, capsys)


def test_an_output_that_is_not_finite_is_reported(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = cli.main([str(models / "nan.onnx"), "--seconds", "0.1", "--no-cold-start"])
    assert status == 0
    assert "NaN or infinity in the output y" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [(), ("--no-cold-start",), ("--profile", "--concurrency", "2")])
def test_a_model_that_fails_on_some_inputs_is_one_message(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    """An index that is computed from the input leaves its table for one input in sixteen."""
    nodes = [
        helper.make_node("Abs", ["x"], ["a"]), helper.make_node("Mul", ["a", "three"], ["b"]),
        helper.make_node("Cast", ["b"], ["c"], to=7),
        helper.make_node("Gather", ["table", "c"], ["y"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, [1])],
        [helper.make_tensor_value_info("y", 1, [1])],
        [numpy_helper.from_array(np.float32(3), "three"),
         numpy_helper.from_array(np.arange(5, dtype=np.float32), "table")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17)]
    path = write(tmp_path / "m.onnx", helper.make_model(graph, opset_imports=opsets, ir_version=8))
    said = refused(path, capfd, *flags)
    assert "out of data bounds" in said
    assert "first of 64 inputs" in said


def request(path: Path, **changes: object) -> fresh.Request:
    return fresh.Request(
        path=path, runtime="onnxruntime", options={}, shape={}, threads=1, **changes
    )  # type: ignore[arg-type]


def test_a_cold_start_has_its_parts(models: Path) -> None:
    found = fresh.cold_start(request(models / "classifier.onnx"))
    assert found.load_ms > 0
    assert found.first_run_ms > 0
    assert 0 <= found.model_memory_bytes < found.peak_memory_bytes < 1e9


def test_the_memory_is_the_models_and_not_that_of_its_inputs(tmp_path: Path) -> None:
    """A convolution with a stride of 4: 0.8 MB of results from a picture of 4.9 MB."""
    weight = np.random.default_rng(0).standard_normal((8, 3, 4, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], strides=[4, 4])], "g",
        [helper.make_tensor_value_info("x", 1, [1, 3, 640, 640])],
        [helper.make_tensor_value_info("y", 1, [1, 8, 160, 160])],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17)]
    path = write(tmp_path / "m.onnx", helper.make_model(graph, opset_imports=opsets, ir_version=8))
    assert fresh.cold_start(request(path)).model_memory_bytes < 30e6  # a ring of 51 is 251 MB


def test_what_lies_in_the_working_folder_is_not_imported(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model from elsewhere may come with a numpy.py."""
    for name in ("numpy", "onnxruntime", "scipy", "json", "vcompress"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('hostile code ran')")
    monkeypatch.chdir(tmp_path)
    assert fresh.cold_start(request(models / "classifier.onnx")).load_ms > 0


def test_a_load_that_hangs_is_ended_and_says_where(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f'import time; print(\'{MARK}{{"stage": "loading it"}}\', flush=True); '
    real = subprocess.run
    monkeypatch.setattr(
        subprocess, "run",
        lambda argv, **k: real([sys.executable, "-c", script + "time.sleep(60)"], **k),
    )  # fmt: skip
    with pytest.raises(UserError, match=r"did not come back within 1 s while loading it"):
        fresh.cold_start(request(models / "classifier.onnx", timeout_s=1.0))


def test_the_control_group_limits_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(apart, "_GROUP_LIMITS", (tmp_path / "missing", limit))
    for text, right in (("max\n", machine), ("104857600\n", 104857600), (f"{2**63}", machine)):
        limit.write_text(text)
        assert apart.memory_limit() == right


def test_free_memory_is_that_of_the_machine_and_of_the_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, used, group = (tmp_path / name for name in ("meminfo", "current", "stat"))
    memory.write_text("MemTotal: 9000 kB\nMemAvailable:    2000 kB\n")
    for name, file in (("_MEMORY", memory), ("_GROUP_USED", used), ("_GROUP_STATISTICS", group)):
        monkeypatch.setattr(apart, name, file)
    monkeypatch.setattr(apart, "memory_limit", lambda: 3_000_000)
    assert apart.memory_free() == 2_048_000
    used.write_text("2500000\n")
    group.write_text("anon 1\ninactive_file 400000\n")
    assert apart.memory_free() == 900_000
    memory.unlink()
    used.unlink()
    assert apart.memory_free() == 3_000_000


LIMITED = """
import json, resource, sys
from vcompress.bench.apart import serve
def work(request):
    names = ("RLIMIT_CORE", "RLIMIT_CPU", "RLIMIT_DATA")
    return {name: resource.getrlimit(getattr(resource, name))[0] for name in names}
sys.exit(serve(work))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="these limits are Linux's")
def test_the_fresh_process_has_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "limited.py").write_text(LIMITED)
    monkeypatch.setenv("PYTHONPATH", ":".join([str(tmp_path), *filter(None, sys.path)]))
    found = apart.ask("limited", {"path": "m", "device": "cpu"}, 10.0).answer
    cpus = len(os.sched_getaffinity(0))
    assert (found["RLIMIT_CORE"], found["RLIMIT_CPU"]) == (0, 10 * cpus + 5)
    free = found["RLIMIT_DATA"] - apart.UNUSED_MEMORY
    assert 0 < free <= apart.memory_limit()
    on_gpu = apart.ask("limited", {"path": "m", "device": "cuda"}, 10.0).answer
    assert on_gpu["RLIMIT_DATA"] == resource.getrlimit(resource.RLIMIT_DATA)[0]


def test_time_is_limited_for_code_of_a_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is that of the code within, and again that of the code around it."""
    armed: list[float] = []

    def allow(seconds: float) -> None:
        armed.append(seconds)
        apart._allowed.now_s = seconds

    monkeypatch.setattr(apart, "_allow", allow)
    monkeypatch.setattr(apart, "_allowed", apart._Allowed())
    with apart.bounded(5.0):
        pass
    assert armed == []  # nobody asked for patience: this is the user's own process
    apart._allowed.patience_s = 10.0
    with pytest.raises(ValueError, match="within"), apart.bounded(5.0), apart.bounded():
        raise ValueError("within")
    assert armed == [15.0, 10.0, 15.0, 0.0]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a feature of Linux")
def test_the_fresh_process_ends_with_the_one_that_asked(tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text(
        "import os, time\nfrom pathlib import Path\nfrom vcompress.bench.apart import serve\n"
        "serve(lambda r: (Path(r['path']).write_text(str(os.getpid())), time.sleep(60)))\n"
    )
    code = (
        "import sys; from vcompress.bench.apart import ask; "
        "ask('sleeper', {'path': sys.argv[1]}, 60)"
    )
    told, paths = tmp_path / "pid", [str(tmp_path), *filter(None, sys.path)]
    asking = subprocess.Popen(
        [sys.executable, "-c", code, str(told)], env={**os.environ, "PYTHONPATH": ":".join(paths)}
    )
    wait(lambda: told.exists() and told.read_text() != "")
    asking.kill()
    asking.wait()
    state = Path("/proc") / told.read_text() / "stat"
    wait(lambda: not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z")


OBEYS = """
import sys, time
from vcompress.bench.apart import bounded
def main(arguments):
    print("got", arguments, flush=True)
    with bounded():
        time.sleep(float(arguments[0]))
    return 7
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no such timer")
def test_a_supervised_command_ends_where_a_model_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "obeys.py").write_text(OBEYS)
    monkeypatch.setenv("PYTHONPATH", ":".join([str(tmp_path), *filter(None, sys.path)]))
    assert apart.supervised("obeys", ["0", "b c"], 5.0).status == 7
    assert capfd.readouterr().out == "got ['0', 'b c']\n"
    begin = time.monotonic()
    reply = apart.supervised("obeys", ["60"], 0.2)
    assert time.monotonic() - begin < 20
    assert reply.end == "did not come back in time"


def wait(done: Callable[[], bool], most_s: float = 20.0) -> None:
    end = time.monotonic() + most_s
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


ENDED = """
import os, signal, sys, tempfile, time
from vcompress.bench import cli
number = int(sys.argv[1])
def work(options):
    with tempfile.TemporaryDirectory() as folder:
        print(folder, flush=True)
        os.kill(os.getpid(), number)
        time.sleep(5)
    return 0
before = signal.getsignal(number)
cli._run = work
try:
    cli.main(["model.onnx"])
except SystemExit as ended:
    print(ended.code, signal.getsignal(number) is before)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_command_and_removes_what_it_made(number: signal.Signals) -> None:
    """In a process of its own, which may end with it."""
    command = [sys.executable, "-c", ENDED, str(int(number))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    folder, status = done.stdout.splitlines()
    assert status == f"{128 + number} True"
    assert not Path(folder).exists()


def test_a_crash_is_one_message(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.run
    kill = f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})"
    monkeypatch.setattr(
        subprocess, "run", lambda argv, **k: real([sys.executable, "-c", kill], **k)
    )
    with pytest.raises(UserError, match=r"crashed \(SIGSEGV\) while starting"):
        fresh.cold_start(request(models / "classifier.onnx"))


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """A copy with a few flipped bytes, or cut, or both."""
    kind = rng.integers(0, 3)
    changed = bytearray(data)
    if kind != 1:
        for at in rng.integers(0, len(changed), size=int(rng.integers(1, 9))):
            changed[at] ^= int(rng.integers(1, 256))
    if kind != 0:
        changed = changed[: int(rng.integers(1, len(changed)))]
    return bytes(changed)


def survive(models: Path, folder: Path, capsys: pytest.CaptureFixture[str], count: int) -> int:
    data = (models / "classifier.onnx").read_bytes()
    rng = np.random.default_rng(1)
    refusals = 0
    for i in range(count):
        path = folder / f"m{i}.onnx"
        path.write_bytes(mutated(data, rng))
        status = cli.main(
            [str(path), "--seconds", "0.05", "--threads", "1", "--load-timeout", "30"]
        )
        out, err = capsys.readouterr()
        assert status in (0, 2, 3), (i, status, out, err)
        assert "Traceback" not in out + err
        assert (status == 2) == bool(err.strip())
        refusals += status == 2
    return refusals


def test_a_few_mutated_copies_are_refused_or_measured(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert survive(models, tmp_path, capsys, 8) >= 4


@pytest.mark.slow
def test_two_hundred_mutated_copies_are_refused_or_measured(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert survive(models, tmp_path, capsys, 200) >= 100
