"""Which torchvision networks go through PTQ, one QAT step, export and ONNX Runtime.

    python tests/benchmarks/quantize_coverage.py --images 1000 --out coverage.md
    python tests/benchmarks/quantize_coverage.py --set timm --images 100
    python tests/benchmarks/quantize_coverage.py --set families --require   # in CI

Random weights, batch statistics from the images, calibrated steps. Each network runs in a process
of its own, so that one that is killed does not end the sweep. Without names: all classification
and segmentation networks of torchvision, or those of `_timm.py` at the size they were made for.
A sweep that was stopped goes on: rows in `--out` that did not fail are kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import _timm

LEAST_PX = {"vit_h_14": 70, "inception_v3": 128, "maxvit_t": 224, "googlenet": 96, "alexnet": 96}
LARGE_GMACS = 20.0
"""Networks of more work (one image of 224 px) are tried on a tenth of the images."""
FEW = 100
"""Images that are also run with the runtime's optimisations off, which takes the longest."""


FAMILIES = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5",
    "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5",
    "squeezenet1_1", "swin_t", "vgg11", "vit_b_32", "lraspp_mobilenet_v3_large",
)  # fmt: skip


def names(which: str) -> list[str]:
    """All classification and segmentation networks of torchvision, one of each of its families, or
    some of timm."""
    if which == "timm":
        return _timm.listed()
    if which == "families":
        return list(FAMILIES)
    from torchvision import models

    found = [*models.list_models(module=models), *models.list_models(module=models.segmentation)]
    return list(dict.fromkeys(found))


def images_like(count: int, size: int) -> Any:
    """Noise whose mean, contrast and scale differ from image to image, [N, 3, size, size]."""
    import torch
    from torch.nn.functional import interpolate

    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 3, 8, 8, generator=generator)
    fine = torch.randn(count, 3, size, size, generator=generator)
    contrast = torch.rand(count, 1, 1, 1, generator=generator) * 2 + 0.1
    mean = torch.randn(count, 3, 1, 1, generator=generator)
    return (interpolate(coarse, size=size, mode="bilinear") + 0.3 * fine) * contrast + mean


def build(name: str, size: int) -> Any:
    """A network with random weights; parts that start at zero get small random values."""
    import torch
    from torch import nn
    from torchvision import models

    torch.manual_seed(0)
    options: dict[str, Any] = {"weights": None}
    if name.startswith("vit_"):
        options["image_size"] = size
    if name in dir(models.segmentation):
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    timms = name.startswith("timm:")
    model = _timm.build(name) if timms else models.get_model(name, **options)
    for key, parameter in model.named_parameters():
        if not bool(parameter.any()) and key.rpartition(".")[2] != "bias":
            nn.init.normal_(parameter, 0, 0.02) if parameter.dim() > 1 else nn.init.ones_(parameter)
    return model


def gmacs(name: str) -> float:
    """Multiply-accumulates of one image of 224 px (518 px and so on where it is made for that)."""
    import torch

    from vcompress.compress.models.cost import count_macs

    size = {"inception_v3": 299}.get(name, 224)
    model = build(name, size).eval()
    if name.startswith("timm:"):
        size = _timm.size(name)
    return count_macs(model, torch.zeros(1, 3, size, size)) / 1e9


def one(name: str, target: str, size: int, count: int) -> dict[str, Any]:
    """The whole way of one network."""
    import torch
    from torch import nn

    from vcompress.compress import quantization as q
    from vcompress.export import integers, onnx_export, parity
    from vcompress.export.runtime import run_onnx

    size = max(size, LEAST_PX.get(name, 0))
    size = _timm.size(name) if name.startswith("timm:") else size
    size = 256 if name.startswith("swin_v2") and size > 224 else size
    model = build(name, size)
    count = count // 10 if gmacs(name) > LARGE_GMACS else count
    images = images_like(count, size)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    batches = torch.split(images[: min(count, 32)], 16)
    with torch.no_grad():
        for batch in batches:
            model(batch)
    model.eval()
    started = time.perf_counter()
    prepared = q.prepare(model, images[:1], target=target)
    q.calibrate(prepared, batches)
    prepared.train()
    q.freeze_norms(prepared)
    optimizer = torch.optim.SGD(prepared.parameters(), 1e-6)
    out = prepared(images[:4])
    (out["out"] if isinstance(out, dict) else out).square().mean().backward()
    without = [n for n, p in prepared.named_parameters() if p.requires_grad and p.grad is None]
    nn.utils.clip_grad_value_(prepared.parameters(), 1.0)  # random gates reach 1e19
    optimizer.step()
    where = q.placement(prepared)
    deployed = q.to_export(prepared.eval())
    with TemporaryDirectory() as folder:
        file = Path(folder) / "m.onnx"
        report = onnx_export.export(deployed, file, ("input", (3, size, size)))
        few = parity.check(deployed, file, images[:FEW])
        reference = parity.run_torch(deployed, images)
        shipped = run_onnx(file, images.numpy(), optimised=True)[0]
        found = parity.compare(reference, shipped)
        back = integers.read_back(file)
    return {
        "layers": len(where["weights"]),
        "float": len(where["float"]),
        "int8_operators": back.integer_operators,
        "float_operators": back.float_operators,
        "images": len(images),
        "agreement": found.top1_agreement,
        "sqnr_db": found.sqnr_db,
        "plain_agreement": few.plain.top1_agreement,
        "plain_sqnr_db": few.plain.sqnr_db,
        "ok": few.ok,
        "first": few.first_divergence,
        "size_mb": report.size_bytes / 1e6,
        "no_gradient": without,
        "seconds": time.perf_counter() - started,
    }


def _passes(result: dict[str, Any]) -> bool:
    """Whether a network agrees with its file: at least 99.9 % and 40 dB.

    Softmax is summed here as AVX-512 does it; on another processor the tensor-by-tensor check
    decides.
    """
    import torch

    if not result["ok"] or result["no_gradient"]:
        return False
    other = torch.backends.cpu.get_cpu_capability() != "AVX512"
    return other or (result["agreement"] >= 0.999 and result["sqnr_db"] >= 40)


def attempt(name: str, options: argparse.Namespace) -> tuple[str, bool]:
    """The row of a network that is tried in a process of its own, and whether it passes."""
    command = [
        sys.executable, __file__, name, "--one", "--target", options.target,
        "--size", str(options.size), "--images", str(options.images),
    ]  # fmt: skip
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=options.timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return f"| {name} | | | | | | | | | FAILED: timed out | |", False
    if run.returncode != 0:
        why = (run.stderr.strip().splitlines() or ["killed"])[-1][:160]
        return f"| {name} | | | | | | | | | FAILED: {why} | |", False
    r = json.loads(run.stdout.splitlines()[-1])
    verdict = "ok" if r["ok"] else f"differs at {r['first']}"
    if r["no_gradient"]:
        verdict += f"; no gradient: {r['no_gradient'][0]}"
    line = (
        f"| {name} | {r['layers']} | {r['float']} | {r['int8_operators']} / "
        f"{r['float_operators']} | {r['images']} | {r['agreement']:.2%} | {r['sqnr_db']:.1f} | "
        f"{r['plain_agreement']:.2%}, {r['plain_sqnr_db']:.1f} dB | {r['size_mb']:.1f} | "
        f"{verdict} | {r['seconds']:.0f} |"
    )
    return line, _passes(r)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--set", choices=["torchvision", "families", "timm"], default="torchvision")
    parser.add_argument("--target", default="onnxruntime")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--timeout-s", type=float, default=1800)
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--require", action="store_true", help="status 1 where a network fails or is below the bar"
    )
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.names[0], options.target, options.size, options.images)))
        return
    lines = [
        "| network | layers int8 | kept float | int8 / float compute nodes in ONNX Runtime "
        "| images | top-1 agreement | SQNR dB | 100 images, optimisations off | MB | verdict | s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|--:|",
    ]
    if options.out and options.out.exists():
        lines = [row for row in options.out.read_text().splitlines() if "FAILED" not in row]
    done = {row.split("|")[1].strip() for row in lines}
    todo = [name for name in options.names or names(options.set) if name not in done]
    below = []
    print("\n".join(lines), flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        results = pool.map(attempt, todo, [options] * len(todo))
        for name, (line, good) in zip(todo, results, strict=True):
            print(line, flush=True)
            lines.append(line)
            if options.out:
                options.out.write_text("\n".join(lines) + "\n")
            if not good:
                below.append(name)
    if below and options.require:
        sys.exit(f"below the bar: {', '.join(below)}")


if __name__ == "__main__":
    main()
