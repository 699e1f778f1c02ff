"""A killed training goes on and ends with the weights of an undisturbed one, bit for bit."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vcompress.bench.errors import UserError
from vcompress.compress.data.loader import Data
from vcompress.compress.training.config import Context, TrainConfig
from vcompress.compress.training.loop import fit
from vcompress.compress.training.state import load_state

SCRIPT = Path(__file__).with_name("training_script.py")
BASE = TrainConfig(epochs=4, batch_size=8, lr=0.02)
VARIANTS = {
    "adamw": BASE,
    "sgd": replace(BASE, optimizer="sgd"),
    "ema": replace(BASE, ema_decay=0.8),
    "accumulate": replace(BASE, accumulate=2, ema_decay=0.5, optimizer="sgd"),
    "frozen": replace(BASE, freeze="backbone"),
    "bf16": replace(BASE, precision="bf16"),
}

# Of the data: what changes the images must be drawn anew in the same way.
CHANGES: dict[str, dict[str, Any]] = {
    "rand": {"augment": "rand", "erase": 0.3},
    "trivial": {"augment": "trivial", "balanced": True},
    "mixed": {"mixup": 0.3, "cutmix": 1.0},
}


class Killed(BaseException):
    pass


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("kind", [*VARIANTS, *CHANGES])
def test_a_run_stopped_in_its_third_epoch_ends_as_an_undisturbed_one(
    tiny_data: Callable[..., Data], tiny_nets: Any, tmp_path: Path, kind: str
) -> None:
    config = VARIANTS.get(kind, BASE)
    data = replace(tiny_data(augment="affine"), **CHANGES.get(kind, {}))
    step = 0 if kind in ("sgd", "accumulate") else 3  # between two epochs, or within one

    def run(work: str, resume: bool = False, stop_at: int = 0) -> tuple[Any, Any]:
        torch.manual_seed(5)
        model = tiny_nets.batch()
        calls = []

        def loss(logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
            calls.append(1)
            if len(calls) == stop_at:
                raise Killed
            return torch.nn.functional.cross_entropy(logits, labels)

        context = Context(data, tmp_path / work, 2, resume)
        return model, fit(model, config, context, loss, name="t")

    whole, found = run("whole")
    with pytest.raises(Killed):
        run("cut", stop_at=11 + step)  # five steps an epoch
    torch.rand(3)
    assert len(load_state(tmp_path / "cut" / "t" / "state.safetensors").history) == 2
    resumed, again = run("cut", resume=True)
    assert same(whole.state_dict(), resumed.state_dict())
    assert again == found
    # A run that had finished is not trained again.
    finished, third = run("cut", resume=True, stop_at=1)
    assert same(whole.state_dict(), finished.state_dict())
    assert third == found


def test_a_process_that_is_killed_in_an_epoch_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("training_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    config = {"epochs": 5, "batch_size": 8, "lr": 0.02, "ema_decay": 0.7, "accumulate": 2}
    whole, found = script.train(tmp_path / "whole", "batch", config)
    cut = tmp_path / "cut"
    state = cut / "train" / "state.safetensors"
    options = {"net": "batch", "config": config, "slow_s": 0.02}
    command = [sys.executable, str(SCRIPT), str(cut), json.dumps(options)]
    with subprocess.Popen(command) as process:
        deadline = time.monotonic() + 60
        while not (state.is_file() and len(load_state(state).history) >= 2):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        time.sleep(0.15)  # an epoch takes 0.7 s and more: this is in the middle of the third
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert len(load_state(state).history) == 2
    weights, again = script.train(cut, "batch", config, resume=True)
    assert same(whole, weights)
    assert again == found


def test_a_state_that_was_being_written_does_not_matter(
    tiny_data: Callable[..., Data], tiny_nets: Any, tmp_path: Path
) -> None:
    context = Context(tiny_data(), tmp_path, 0, False)
    torch.manual_seed(0)
    fit(tiny_nets.group(), BASE, context, name="t")
    file = tmp_path / "t" / "state.safetensors"
    file.with_suffix(".writing").write_bytes(file.read_bytes()[:100])
    torch.manual_seed(0)
    found = fit(tiny_nets.group(), BASE, replace(context, resume=True), name="t")
    assert found["epochs"] == 4


def resumed_with(
    data: Data, nets: Any, work: Path, config: TrainConfig = BASE, seed: int = 0,
    weights: int = 0, teacher: Any = None,
) -> None:  # fmt: skip
    torch.manual_seed(weights)
    fit(nets.group(), config, Context(data, work, seed, True, teacher), name="t")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": replace(BASE, lr=0.5)}, "--resume: config.lr was 0.02 and is now 0.5"),
        ({"config": replace(BASE, epochs=9)}, "config.epochs was 4 and is now 9"),
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"weights": 1}, "initial_weights was"),
    ],
)
def test_a_resume_with_something_else_names_it(
    tiny_data: Callable[..., Data], tiny_nets: Any, tmp_path: Path,
    change: dict[str, Any], message: str,
) -> None:  # fmt: skip
    data = tiny_data()
    resumed_with(data, tiny_nets, tmp_path)
    with pytest.raises(UserError) as caught:
        resumed_with(data, tiny_nets, tmp_path, **change)
    assert message in str(caught.value)
    assert "omit --resume to start again" in str(caught.value)


def test_a_resume_with_other_data_or_another_teacher_names_it(
    tiny_data: Callable[..., Data], tiny_nets: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    one, two = tiny_nets.group(), tiny_nets.group()
    resumed_with(tiny_data(), tiny_nets, tmp_path, teacher=one)
    with pytest.raises(UserError, match="data was '0' and is now '1'"):
        resumed_with(tiny_data(seed=1), tiny_nets, tmp_path, teacher=one)
    with pytest.raises(UserError, match="augment was 'none' and is now 'affine'"):
        resumed_with(tiny_data(augment="affine"), tiny_nets, tmp_path, teacher=one)
    with pytest.raises(UserError, match="teacher was"):
        resumed_with(tiny_data(), tiny_nets, tmp_path, teacher=two)


def test_without_resume_a_run_starts_again(
    tiny_data: Callable[..., Data], tiny_nets: Any, tmp_path: Path
) -> None:
    resumed_with(tiny_data(), tiny_nets, tmp_path)
    torch.manual_seed(0)
    context = Context(tiny_data(), tmp_path, 0, False)
    assert fit(tiny_nets.group(), replace(BASE, lr=0.5), context, name="t")["epochs"] == 4


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_state_is_named(
    tiny_data: Callable[..., Data], tiny_nets: Any, tmp_path: Path, damage: str
) -> None:
    resumed_with(tiny_data(), tiny_nets, tmp_path)
    file = tmp_path / "t" / "state.safetensors"
    content = file.read_bytes()
    damaged = {
        "cut": content[:-10], "flip": b"\xff" + content[1:], "empty": b"", "text": b"hello there"
    }  # fmt: skip
    file.write_bytes(damaged[damage])
    with pytest.raises(UserError, match="the saved training state cannot be read"):
        resumed_with(tiny_data(), tiny_nets, tmp_path)


def test_a_full_disk_keeps_the_last_state(
    tiny_data: Callable[..., Data], tiny_nets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vcompress.compress.training import state as states

    resumed_with(tiny_data(), tiny_nets, tmp_path, replace(BASE, epochs=1))
    file = tmp_path / "t" / "state.safetensors"
    before = file.read_bytes()

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"half")
        raise states.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(states, "save_file", full)
    state = load_state(file)
    with pytest.raises(UserError, match=r"could not be written .*No space left"):
        model = tiny_nets.group()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        states.save_state(
            file, model, None, optimizer, None, identity=state.identity, best={},
            best_accuracy=0.0, best_epoch=0, history=[], finished=False,
        )  # fmt: skip
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == ["state.safetensors"]
