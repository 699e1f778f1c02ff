"""Which segmentation networks go through pruning, int8, ONNX Runtime and an engine's build.

    python tests/benchmarks/segmentation_coverage.py                  # ten networks, 128 px
    python tests/benchmarks/segmentation_coverage.py fcn+r18 --no-engine

Random weights, batch statistics and calibration from scenes. For each network: share of the MACs
after pruning to a half, and its equality (float64 outputs against the network with those channels
switched off, relative); int8 of the pruned network: layers that run in integers in ONNX Runtime's
optimised graph, and the file against the exported network in torch; int8 for TensorRT-RTX built for
SM 89: int8 layers of the engine, of those meant to be, and weights that it expanded.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from vcompress.bench.tasks import open_dataset
from vcompress.compress import quantization
from vcompress.compress.data.loader import Data
from vcompress.compress.models.catalogue import build, make_spec
from vcompress.compress.pruning import prune
from vcompress.compress.pruning.batch_norm import recalibrate
from vcompress.compress.pruning.probe import difference
from vcompress.export import integers, onnx_export, parity

TASK = "segmentation"
NETWORKS = (
    "fcn_resnet50", "fcn_resnet101", "deeplabv3_resnet50", "deeplabv3_resnet101",
    "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large", "smp:unet-resnet34",
    "smp:fpn-mobilenet_v2", "smp:deeplabv3plus-resnet18", "hf:segformer",
)  # fmt: skip


def row(name: str, data: Data, side: int, engine: bool, work: Path) -> list[str]:
    """The cells of one network."""
    torch.manual_seed(0)
    started = time.perf_counter()
    model = build(make_spec(name, len(data.classes), (side, side))).eval()
    example = data.example
    whole = copy.deepcopy(model)
    report = prune(model, example, macs=0.5)
    gap = difference(whole, report.groups, report.removed, example)
    recalibrate(model, data.sample(16, 4))
    images = data.images("train", 64)
    file = work / "m.onnx"
    deployed = _int8(model, images, "onnxruntime", file)
    found = integers.read_back(file)
    proof = parity.check(deployed, file, data.images("test", 32), task=TASK)
    cells = [
        name, f"{report.achieved['macs']:.3f}", f"{gap:.0e}", f"{found.integer} of {found.meant}",
        f"{proof.optimised.top1_agreement:.2%}", f"{proof.optimised.sqnr_db:.1f} dB",
        "yes" if proof.ok else f"NO: {proof.first_divergence}",
    ]  # fmt: skip
    cells += _engine(model, images, work) if engine else ["-", "-"]
    return [*cells, f"{time.perf_counter() - started:.0f}"]


def _int8(model: torch.nn.Module, images: Tensor, target: str, file: Path) -> torch.nn.Module:
    prepared = quantization.prepare(copy.deepcopy(model), images[:1], target=target)
    quantization.calibrate(prepared, [images])
    deployed = quantization.to_export(prepared.eval())
    onnx_export.export(deployed, file, ("input", tuple(images.shape[1:])))
    return deployed


def _engine(model: torch.nn.Module, images: Tensor, work: Path) -> list[str]:
    """Int8 layers of the engine of those meant to be, and weights that are expanded."""
    from vcompress.bench.engine import Settings, build_engine
    from vcompress.export.engine_proof import prove

    file = work / "rtx.onnx"
    _int8(model, images, "tensorrt", file)
    report = build_engine(file, work / "m.engine", Settings(flavour="tensorrt-rtx", sm=(89,)))
    if report.layers is None:
        return [str(report.layers_missing), "-"]
    found = prove(file, report.layers)
    return [f"{found.low} of {len(found.quantised)}", str(len(found.expanded))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(NETWORKS))
    parser.add_argument("--side", type=int, default=128, help="of the images, pixels")
    parser.add_argument("--no-engine", action="store_true")
    options = parser.parse_args()
    dataset = open_dataset("scenes", task=TASK)
    data = Data(dataset, dataset.default_preprocess)
    print("| network | MACs | equality | in integers | pixels equal | SQNR | proved "
          "| int8 layers of the engine | expanded | s |")  # fmt: skip
    print("| --- |" + " --: |" * 5 + " --- |" + " --: |" * 3)
    for name in options.names:
        with tempfile.TemporaryDirectory() as folder:
            try:
                cells = row(name, data, options.side, not options.no_engine, Path(folder))
            except Exception as error:  # the table goes on; the row says what happened
                cells = [name, f"{type(error).__name__}: {str(error)[:200]}"]
        print("| " + " | ".join(c.replace("|", "/").replace("\n", " ") for c in cells) + " |",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
