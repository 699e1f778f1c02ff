"""Distillation that was stopped, or runs in two processes, ends as one that was not."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vcompress.bench.errors import UserError
from vcompress.compress.distillation.teaching import Teacher
from vcompress.compress.training import loop as training
from vcompress.compress.training.config import Context


class Killed(BaseException):
    pass


@pytest.mark.parametrize("method", ["fitnet", "infonce", "self"])
def test_a_run_that_was_stopped_ends_as_an_undisturbed_one(
    taught: Context,
    run: Any,
    same: Any,
    tiny_nets: Any,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    tmp_path: Path,
) -> None:
    if method == "self":
        taught = replace(taught, teacher=None)
    options: dict[str, Any] = {"method": method, "epochs": 3}
    whole, details = run(replace(taught, workdir=tmp_path / "a"), tiny_nets.batch, **options)
    original, calls = training.save_state, []

    def stop(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        calls.append(1)
        if len(calls) == 2:
            raise Killed

    monkeypatch.setattr(training, "save_state", stop)
    with pytest.raises(Killed):
        run(replace(taught, workdir=tmp_path / "b"), tiny_nets.batch, **options)
    monkeypatch.setattr(training, "save_state", original)
    resumed, again = run(
        replace(taught, workdir=tmp_path / "b", resume=True), tiny_nets.batch, **options
    )
    assert same(whole, resumed)
    assert again["loss"] == details["loss"]


def test_a_resume_with_another_teacher_is_refused(
    taught: Context, run: Any, tiny_nets: Any
) -> None:
    own = Teacher(tiny_nets.batch(), taught.data.preprocess)
    run(replace(taught, teachers=(own,)), tiny_nets.batch)
    other = Teacher(tiny_nets.batch(), taught.data.preprocess)
    with pytest.raises(UserError, match=r"loss.teachers was"):
        run(replace(taught, teachers=(other,), resume=True), tiny_nets.batch)


TWO = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import torch
from safetensors.torch import save_file
from training_script import make_data, make_net
from vcompress.compress.training.processes import process_state
from vcompress.compress.training.config import Context
from vcompress.compress.stages import distill

out, options = Path(sys.argv[1]), json.loads(sys.argv[2])
teacher, student = make_net("batch"), make_net("group")
losses = "kd=1", "fitnet=1", "at=5"
config = distill.Config(epochs=2, batch_size=8, lr=0.02, losses=losses, **options)
found = distill.apply(student, config, Context(make_data(), out, seed=3, teacher=teacher)).details
if process_state().is_main_process:
    save_file({k: v.contiguous() for k, v in student.state_dict().items()}, out / "w.safetensors")
    (out / "found.json").write_text(json.dumps({**found, "world": process_state().num_processes}))
process_state().wait_for_everyone()
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.slow  # that training does is among the default tests
def test_two_processes_distil_as_one_does(tmp_path: Path) -> None:
    """Projections are trained in both, and each fills its part of the cache."""
    from safetensors.torch import load_file

    (tmp_path / "two.py").write_text(TWO)
    here = str(Path(__file__).parents[1])
    ends = []
    for name, start in (
        ("one", []),
        ("two", ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr",
                 "127.0.0.1", "--master_port", str(free_port())]),
    ):  # fmt: skip
        out = tmp_path / name
        out.mkdir()
        options = json.dumps({"cache_teacher": str(out / "cache"), "cache_views": 2})
        done = subprocess.run(
            [sys.executable, *start, str(tmp_path / "two.py"), str(out), options, here],
            capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        found = json.loads((out / "found.json").read_text())
        ends.append((found, load_file(out / "w.safetensors")))
    (one, alone), (two, together) = ends
    assert (one["world"], two["world"]) == (1, 2)
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-4)
    for key, value in alone.items():
        assert torch.allclose(together[key], value, atol=1e-4), key
