"""What comes after the training is tried before it, and trained weights are never lost."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vcompress.bench.bundle import Bundle
from vcompress.bench.errors import UserError
from vcompress.compress import stages
from vcompress.compress.bundles.store import Network, load_network
from vcompress.compress.models.catalogue import build, make_spec
from vcompress.compress.options import Options
from vcompress.compress.pipeline import finish, measure
from vcompress.compress.pipeline.rehearsal import Rehearsal
from vcompress.compress.pipeline.resolve import open_data
from vcompress.compress.pipeline.run import run_stage
from vcompress.compress.training import loop

NETS = '''
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, classes)
        self.calls, self.size, self.temperature, self.gain = 0, (0, 0), 8.0, 1

    def body(self, x):
        return F.relu(self.conv(x)).mean((2, 3))

    def forward(self, x):
        return self.fc(self.body(x))


class Counts(Net):
    """A counter and a size grow, a temperature falls and decides the outputs."""

    def forward(self, x):
        self.calls, self.size = self.calls + 1, tuple(x.shape[2:])
        if self.training:
            self.temperature = max(1.0, self.temperature / 2)
        return self.fc(self.body(x)) / self.temperature


class Grows(Net):
    """A whole number that grows decides the outputs."""

    def forward(self, x):
        self.gain += self.training
        return self.fc(self.body(x)) * self.gain


class Exits(Net):
    """Leaves early where it is sure."""

    def forward(self, x):
        x = self.body(x)
        early = self.fc(x)
        return early if early.softmax(1).max() > 0.9 else self.fc(x + 1)


class Random(Net):
    def forward(self, x):
        x = self.body(x)
        return self.fc(x + torch.randn_like(x))


class Counted(Net):
    """What it gives grows with every image that it has seen."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        self.seen += 1
        return self.fc(self.body(x)) + self.seen


class Logarithm(Net):
    def forward(self, x):
        return self.fc(torch.log(self.body(x) - 1e6))


class Detached(Net):
    def forward(self, x):
        return self.fc(self.body(x)).detach()


class State(Net):
    def get_extra_state(self):
        return {"version": 3}

    def set_extra_state(self, state):
        pass


def plain(num_classes=3): return Net(num_classes)
def counts(num_classes=3): return Counts(num_classes)
def grows(num_classes=3): return Grows(num_classes)
def exits(num_classes=3): return Exits(num_classes)
def state(num_classes=3): return State(num_classes)
def random(num_classes=3): return Random(num_classes)
def counted(num_classes=3): return Counted(num_classes)
def logarithm(num_classes=3): return Logarithm(num_classes)
def detached(num_classes=3): return Detached(num_classes)
def lazy(num_classes=3):
    net = Net(num_classes)
    net.fc = nn.LazyLinear(num_classes)
    return net
'''
FINETUNE = stages.load("finetune")
CONFIG = FINETUNE.Config(epochs=2, batch_size=8, lr=0.02)
OPTIONS = Options(data="images", image_size=16)


@pytest.fixture
def nets(work: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (work / "end_nets.py").write_text(NETS)
    monkeypatch.setattr(measure, "LATENCY_SECONDS", 0.05)
    yield
    sys.modules.pop("end_nets", None)


def train(name: str, options: Options = OPTIONS) -> Bundle:
    out = Path("runs") / name
    return run_stage(FINETUNE, CONFIG, {"model": f"end_nets:{name}"}, out, options)


def no_training(*_: Any) -> None:
    raise AssertionError("an epoch began")


@pytest.mark.usefixtures("nets")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "exits",
            "Exits cannot be exported to ONNX.*branches on a value.*Nothing has been trained",
        ),
        ("grows", "computes something else once it is loaded again.*gain.*register_buffer"),
        ("state", "'_extra_state' of a State is a dict, and only tensors are saved"),
        ("random", "something else when the same images come again: Random draws random numbers"),
        ("counted", "something else when the same images come again: Counted .* keeps what it has"),
        ("logarithm", "The network gives NaN for a real image"),
        ("detached", "cannot be trained: what it gives depends on none of its weights"),
        ("lazy", "the layer fc is a LazyLinear.*Give its input width: nn.Linear"),
    ],
)
def test_a_network_that_cannot_be_written_is_refused_before_the_first_epoch(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_train_epoch", no_training)
    with pytest.raises(UserError, match=message):
        train(name)
    assert sorted(path.name for path in Path("runs").iterdir()) == ["net"]


@pytest.mark.usefixtures("nets")
def test_a_counter_that_grows_is_left_behind_and_a_number_that_falls_is_kept() -> None:
    bundle = train("counts")
    net = load_network(bundle, "end_nets:counts").model
    assert (net.calls, net.size, net.temperature) == (0, (0, 0), 1.0)
    again = run_stage(
        stages.load("quantize"), stages.load("quantize").Config(method="ptq"),
        {"model": str(bundle.path)}, Path("runs/q"),
        Options(data="images", image_size=16, trust="end_nets:counts"),
    )  # fmt: skip
    assert again.history[-1].metrics.parity["ok"] is True


@pytest.mark.usefixtures("nets")
def test_weights_are_kept_where_the_end_fails_and_resume_goes_on_from_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = finish.export_checked

    def broken(*_: Any, **__: Any) -> Any:
        raise UserError("no room.")

    monkeypatch.setattr(finish, "export_checked", broken)
    with pytest.raises(UserError, match=r"no room\. The trained weights are kept in .*--resume"):
        train("plain")
    kept = load_file("runs/.plain.work/weights.safetensors")
    monkeypatch.setattr(finish, "export_checked", right)
    monkeypatch.setattr(loop, "_train_epoch", no_training)
    bundle = train("plain", Options(data="images", image_size=16, resume=True))
    written = load_network(bundle, "end_nets:plain").model.state_dict()
    assert written.keys() == kept.keys()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in written.items())
    assert not Path("runs/.plain.work").exists()


@pytest.mark.usefixtures("nets")
def test_a_whole_export_is_tried_where_the_training_is_long(
    caplog: pytest.LogCaptureFixture,
) -> None:
    spec = make_spec("end_nets:plain", 3, (16, 16))
    data = open_data(OPTIONS, [])
    for seconds, said in ((1.0, 0), (3600.0, 1), (float("nan"), 0)):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            Rehearsal(Network(build(spec), spec), data)(build(spec), seconds)
        assert caplog.text.count("trying the export before the training") == said
