"""Families of transformers through pruning, int8 with one step of training, and ONNX Runtime."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from vcompress.bench.tasks import CLASSIFICATION
from vcompress.compress import quantization
from vcompress.compress.models.catalogue import build, make_spec
from vcompress.compress.models.huggingface import GIVE_MAPS, TINY
from vcompress.compress.pruning import prune
from vcompress.compress.pruning.probe import difference
from vcompress.compress.quantization.trace import trace
from vcompress.export import onnx_export, parity

pytest.importorskip("transformers")

FAST = ("resnet", "swin")
SHAPE = {"segformer": (3, 64, 64)}
"""Of its images, where 32 px are too few."""


@pytest.mark.parametrize(
    "family", [f if f in FAST else pytest.param(f, marks=pytest.mark.slow) for f in TINY]
)
def test_half_of_the_macs_in_int8_agrees_with_its_file(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = SHAPE.get(family, (3, 32, 32))
    model = build(make_spec(f"hf:{family}-tiny", 5, shape[1:])).eval()
    images = torch.randn(32, *shape)
    model.train()(images)  # batch norms get averages
    model.eval()
    for parameter in model.parameters():
        if not bool(parameter.any()) and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0, 0.1)  # tables that start at zero
    whole = copy.deepcopy(model)
    report = prune(model, images[:1], macs=0.5)
    assert report.achieved["macs"] <= 0.5
    assert difference(whole, report.groups, report.removed, images[:1]) < 1e-9
    attention = [name for name in report.left_alone if "attention" in name]
    assert attention == []

    with torch.no_grad():
        assert torch.equal(trace(model)(images), model(images))
    prepared = quantization.prepare(model, images[:1], target="onnxruntime")
    quantization.calibrate(prepared, [images])
    layers = sum(isinstance(m, (torch.nn.Conv2d, torch.nn.Linear)) for m in model.modules())
    placement = quantization.placement(prepared)
    assert len(placement["weights"]) == layers
    prepared.train()
    prepared(images[:8]).square().mean().backward()
    without = [n for n, p in prepared.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    torch.optim.SGD(prepared.parameters(), 1e-4).step()
    restored = quantization.restore(model, placement)
    restored.load_state_dict(prepared.state_dict())
    deployed = quantization.to_export(restored.eval())
    onnx_export.export(deployed, tmp_path / "m.onnx", ("input", shape))
    fresh = torch.randn(64, *shape)
    task = "segmentation" if family in GIVE_MAPS else CLASSIFICATION
    proof = parity.check(deployed, tmp_path / "m.onnx", fresh, task=task)
    assert proof.ok, proof.first_divergence
    assert proof.optimised.top1_agreement >= (0.999 if family in GIVE_MAPS else 1.0)
