"""The targets: one file each, whose runtime is known to bench and whose name a flag takes."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from vcompress.bench.errors import UserError
from vcompress.bench.runtimes import module
from vcompress.compress import quantization as q
from vcompress.compress.options import TargetName
from vcompress.compress.quantization.targets import load_target, target_names


def test_the_flag_takes_the_names_that_there_is_a_file_for() -> None:
    assert sorted(get_args(TargetName)) == target_names()
    assert [load_target(name).name for name in target_names()] == target_names()


def test_a_name_that_is_no_target_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'openvin': expected one of onnxruntime.*openvino"):
        load_target("openvin")


@pytest.mark.parametrize(
    ("name", "runtime", "device", "unsigned", "repeat", "measured"),
    [
        ("onnxruntime", "onnxruntime", "cpu", True, True, True),
        ("openvino", "openvino", "cpu", True, False, True),
        ("tensorrt", "tensorrt", "cuda", False, False, False),
    ],
)
def test_a_target_knows_its_runtime(
    name: str, runtime: str, device: str, unsigned: bool, repeat: bool, measured: bool
) -> None:
    found = load_target(name)
    assert (found.runtime, found.device) == (runtime, device)
    assert found.device in module(found.runtime).DEVICES
    assert (found.unsigned, found.repeat) == (unsigned, repeat)
    assert (found.unmeasured == "") == measured == (".onnx" in module(found.runtime).SUFFIXES)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "tensorrt"])
def test_a_quantised_network_knows_its_target(name: str) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
    ).eval()
    made = q.prepare(net, torch.zeros(1, 3, 8, 8), target=name)
    assert q.target_of(net) is None
    assert q.target_of(made) is load_target(name)
    assert q.target_of(q.restore(net, q.placement(made))) is load_target(name)
