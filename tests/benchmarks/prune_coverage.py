"""Which networks can be pruned, and whether the result is right. Prints a Markdown table.

    python tests/benchmarks/prune_coverage.py                  # torchvision, all of it
    python tests/benchmarks/prune_coverage.py resnet18 swin_t  # some
    python tests/benchmarks/prune_coverage.py --set timm --macs 0.5 --no-onnx

For every network, random weights: share of MACs reached; equality (float64 outputs of the pruned
network against the original with those channels switched off, relative); reload from
description and safetensors, bit for bit; ONNX Runtime against torch, relative; seconds that
`prune` took. Takes about an hour for all of torchvision on one core: run it alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import _timm
import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.compress.models.changes import describe, load, load_tensors, reshape, save_tensors
from vcompress.compress.models.faithful import tensors_of
from vcompress.compress.pruning import prune
from vcompress.compress.pruning.probe import difference


def networks(chosen: list[str], which: str) -> list[str]:
    import torchvision.models as tv

    if chosen:
        return chosen
    if which == "timm":
        return _timm.listed()
    module = {"segmentation": tv.segmentation, "detection": tv.detection}.get(which, tv)
    return [name for name in tv.list_models(module=module) if "quantized" not in name]


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A network with random weights, and an image of the size it was made for."""
    import torchvision.models as tv

    torch.manual_seed(0)
    size = 224
    if name.startswith("timm:"):
        model, size = _timm.build(name), _timm.size(name)
    elif name in tv.list_models(module=tv.detection):
        model = tv.get_model(name, weights=None, weights_backbone=None).backbone
        size = 300 if name == "ssd300_vgg16" else size
    elif name in tv.list_models(module=tv.segmentation):
        model = tv.get_model(name, weights=None, weights_backbone=None, aux_loss=None)
    else:
        options: dict[str, Any] = {}
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = False
        model = tv.get_model(name, weights=None, **options)
        size = {"inception_v3": 299}.get(name, getattr(model, "image_size", size))
    for parameter in model.parameters():
        if parameter.dim() > 1 and not bool(parameter.any()):
            nn.init.normal_(parameter, 0, 0.02)  # a head of zeros would prove nothing
    return model, torch.randn(1, 3, size, size)


class _Tensors(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors_of(self.model(images)))


def onnx_gap(model: nn.Module, example: Tensor) -> float:
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        torch.onnx.export(_Tensors(model).eval(), (example,), str(path), dynamo=True, verbose=False)
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        got = session.run(None, {session.get_inputs()[0].name: example.numpy()})
    with torch.no_grad():
        wanted = tensors_of(model(example))
    return max(
        float((torch.from_numpy(one) - other).abs().max() / other.abs().max())
        for one, other in zip(got, wanted, strict=True)
    )


def row(name: str, macs: float, with_onnx: bool, scope: str) -> list[str]:
    model, example = build(name)
    original = copy.deepcopy(model)
    started = time.perf_counter()
    try:
        report = prune(model, example, macs=macs, scope=scope)  # type: ignore[arg-type]
    except UserError as error:
        return [name, str(error)[:160], "", "", "", "", f"{time.perf_counter() - started:.1f}"]
    seconds = time.perf_counter() - started
    gap = difference(original, report.groups, report.removed, example)
    base, _ = build(name)
    with tempfile.TemporaryDirectory() as folder:
        save_tensors(model, Path(folder) / "w.safetensors")
        description = json.loads(json.dumps(describe(model, base)))
        tensors = load_tensors(Path(folder) / "w.safetensors")
        again = load(reshape(base, description), tensors, description.get("versions")).eval()
    model.eval()
    with torch.no_grad():
        exact = all(
            torch.equal(one, other)
            for one, other in zip(
                tensors_of(model(example)), tensors_of(again(example)), strict=True
            )
        )
    alone = [
        f"{layer} ({why})"
        for layer, why in report.left_alone.items()
        if "output" not in why and "narrower" not in why
    ]
    return [
        name,
        f"{report.achieved['macs']:.3f}",
        f"{report.achieved['params']:.3f}",
        f"{gap:.0e}",
        "exact" if exact else "DIFFERS",
        f"{onnx_gap(model, example):.0e}" if with_onnx else "-",
        f"{seconds:.1f}",
        f"{len(alone)}" + (f": {alone[0]}" if alone else ""),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument(
        "--set",
        default="classification",
        dest="which",
        choices=["classification", "segmentation", "detection", "timm"],
    )
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--scope", default="local")
    parser.add_argument("--no-onnx", action="store_true")
    args = parser.parse_args()
    head = ["network", "MACs", "params", "equality", "reload", "ONNX", "prune s", "left alone"]
    print("| " + " | ".join(head) + " |")
    print("|" + " --- |" * len(head))
    for name in networks(args.names, args.which):
        try:
            cells = row(name, args.macs, not args.no_onnx, args.scope)
        except Exception as error:  # the table goes on; the network's row says what happened
            cells = [name, f"{type(error).__name__}: {str(error)[:160]}"]
        print(
            "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |",
            flush=True,
        )


if __name__ == "__main__":
    main()
