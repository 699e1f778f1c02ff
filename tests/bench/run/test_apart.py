"""A model that hangs, crashes or takes all memory now and then does so in another process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto as Kind
from onnx import helper, numpy_helper

from vcompress import bench
from vcompress.bench import cli
from vcompress.bench.errors import EnvironmentLacks
from vcompress.bench.run import apart, job
from vcompress.bench.run.options import Options


def sometimes(path: Path, share: float, what: str) -> Path:
    """An ONNX file [1] -> [1] that in a `share` of its runs goes on for ever ("loop") or asks for
    10^15 bytes ("bomb")."""
    scalar, one = helper.make_tensor_value_info, [1]
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Add", ["v", "one"], ["w"]),
        ],
        "body",
        [scalar("i", Kind.INT64, []), scalar("go", Kind.BOOL, []), scalar("v", Kind.FLOAT, one)],
        [scalar("on", Kind.BOOL, []), scalar("w", Kind.FLOAT, one)],
    )  # fmt: skip
    bad = {
        "loop": [helper.make_node("Loop", ["", "true", "x"], ["t"], body=body)],
        "bomb": [
            helper.make_node("Expand", ["x", "huge"], ["e"]),
            helper.make_node("ReduceMax", ["e"], ["t"], keepdims=0),
        ],
    }[what]
    then = helper.make_graph(bad, "then", [], [scalar("t", Kind.FLOAT, None)])
    as_it_is = helper.make_node("Identity", ["x"], ["f"])
    nodes = [
        helper.make_node("RandomUniform", [], ["r"], shape=[1]),
        helper.make_node("Squeeze", ["r"], ["s"]),
        helper.make_node("Less", ["s", "share"], ["now"]),
        helper.make_node(
            "If", ["now"], ["y"], then_branch=then,
            else_branch=helper.make_graph([as_it_is], "else", [], [scalar("f", Kind.FLOAT, None)]),
        ),
    ]  # fmt: skip
    values = {
        "share": np.float32(share), "one": np.ones(1, np.float32), "true": np.array(True),
        "huge": np.array([250_000_000_000_000]),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [scalar("x", Kind.FLOAT, one)], [scalar("y", Kind.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    return path


@pytest.mark.parametrize(("what", "said"), [
    ("loop", "did not come back in time while measuring"), ("bomb", "failed|does not run"),
])  # fmt: skip
def test_a_model_that_is_bad_now_and_then_ends_in_one_message(
    what: str, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One run in a thousand, so that the fresh process for the cold start sees nothing of it."""
    path = sometimes(tmp_path / "m.onnx", 0.001, what)
    begin = time.monotonic()
    status = cli.main([str(path), "--threads", "1", "--seconds", "3", "--load-timeout", "2",
                       "--no-cold-start"])  # fmt: skip
    assert time.monotonic() - begin < 30
    out, err = capfd.readouterr()
    assert (status, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert any(word in err for word in said.split("|")), err


def test_the_result_is_that_of_this_process(models: Path) -> None:
    asked = Options(
        models=(models / "classifier.onnx",), threads=1, seconds=0.2, data="digits", limit=40
    )
    here, there = job.run(asked), apart.run(asked)
    assert there.models[0].accuracy is not None
    assert here.models[0].accuracy is not None
    assert there.models[0].accuracy.values == here.models[0].accuracy.values
    assert there.models[0].artefact == here.models[0].artefact
    assert there.environment.comparable() == here.environment.comparable()
    found = there.models[0].measurement
    assert found.facts == here.models[0].measurement.facts
    assert found.samples_ns.dtype == np.int64
    assert len(found.samples_ns) > 100
    assert 0.5 < found.median_ms / here.models[0].measurement.median_ms < 2


def test_what_that_process_does_is_told(models: Path) -> None:
    said: list[str] = []
    apart.run(Options(models=(models / "classifier.onnx",), threads=1, seconds=0.1), said.append)
    assert said == [
        "looking at the machine", "loading classifier in a fresh process", "loading", "measuring",
    ]  # fmt: skip


def test_errors_keep_their_kind(models: Path) -> None:
    with pytest.raises(EnvironmentLacks, match="CUDAExecutionProvider"):
        bench.measure(models / "classifier.onnx", device="cuda")


def test_own_data_are_found_where_the_program_finds_them(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "beside_it.py").write_text(
        "import numpy as np\n"
        "def squares():\n"
        "    print('squares are made')\n"
        "    rng = np.random.default_rng(0)\n"
        "    rows = [(rng.integers(0, 256, (32, 32, 3), np.uint8), n % 10) for n in range(40)]\n"
        "    return {'train': rows[:20], 'val': rows[20:30], 'test': rows[30:]}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = bench.measure(
        models / "classifier.onnx", data="beside_it:squares", threads=1, seconds=0.1
    )
    assert found.accuracy is not None
    assert "squares are made" in capfd.readouterr().out


INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from vcompress.bench.cli import main
raise SystemExit(main())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_that_process_ends_with_the_one_that_asked(number: signal.Signals, models: Path) -> None:
    asking = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, str(models / "classifier.onnx"), "--seconds", "60",
         "--no-cold-start"],
        env={**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path))},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    child = _measuring(asking.pid)
    asking.send_signal(number)
    _, err = asking.communicate(timeout=30)
    assert "Traceback" not in err
    assert asking.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}.get(number, -number)
    end = time.monotonic() + 10
    while _alive(child):
        assert time.monotonic() < end
        time.sleep(0.02)


def _measuring(parent: int) -> int:
    """The child of a process, once it has used half a second of CPU time."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        time.sleep(0.05)
        for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            user = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])
            if user / os.sysconf("SC_CLK_TCK") > 0.5:
                return int(pid)
    raise AssertionError("it measures nothing")


def _alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    try:
        return state.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
