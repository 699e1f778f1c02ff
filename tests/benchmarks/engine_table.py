"""Build seconds, megabytes and int8 share of engines cross-built with TensorRT-RTX, with no GPU.

    python tests/benchmarks/engine_table.py --work /tmp/engines --out docs/engine_table.md

Random weights; int8 is `--target tensorrt`, calibrated on random images, the rest in float16.
Build seconds hold for a machine with nothing else to do. A run that was stopped goes on: rows in
`--out` and ONNX files in `--work` are kept. Each network is made in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

NETWORKS = (
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "vit_b_16",
    "swin_t", "convnext_tiny", "deeplabv3_resnet50",
)  # fmt: skip
SMS = (86, 89, 120)
PX = 224
HEAD = (
    "| network | SM | FP16 build | FP16 engine | INT8 build | INT8 engine | int8 layers | "
    "quantised nodes in int8 | weights expanded |\n|---|---|---|---|---|---|---|---|---|\n"
)


def make(name: str, work: Path) -> None:
    """`NAME.fp16.onnx`, `NAME.int8.onnx` and `NAME.int8-fp16.onnx` in `work`, where missing."""
    import shutil

    import torch
    from torchvision import models

    from vcompress.compress.quantization import calibrate, prepare, to_export
    from vcompress.export.onnx_export import export
    from vcompress.export.precision import convert_file

    plain, half, int8, both = paths(name, work)
    if not (plain.exists() and int8.exists()):
        torch.manual_seed(0)
        options = {"weights": None}
        if name in dir(models.segmentation):
            options["weights_backbone"] = None
        model = models.get_model(name, **options).eval()
        images = torch.randn(2, 3, PX, PX)
        export(model, plain, ("input", (3, PX, PX)))
        quantised = prepare(model, images[:1], target="tensorrt")
        calibrate(quantised, [images], "minmax")
        export(to_export(quantised), int8, ("input", (3, PX, PX)))
    for source, target in ((plain, half), (int8, both)):
        if not target.exists():
            staging = target.with_suffix(".tmp")
            shutil.copyfile(source, staging)
            convert_file(staging, "fp16")
            staging.rename(target)


def paths(name: str, work: Path) -> list[Path]:
    """float32, float16, int8 with float32, int8 with float16."""
    return [work / f"{name}.{kind}.onnx" for kind in ("fp32", "fp16", "int8", "int8-fp16")]


def made(name: str, work: Path) -> list[Path]:
    """The files, made in a process of their own where they are missing."""
    files = paths(name, work)
    if not all(file.exists() for file in files):
        call = [sys.executable, __file__, "--work", str(work), "--make", name]
        subprocess.run(call, check=True, env=os.environ | {"PYTHONWARNINGS": "ignore"})
    return files


def row(name: str, sm: int, work: Path) -> str:
    """One line of the table."""
    from vcompress.bench.engine import Settings, build_engine
    from vcompress.export.engine_proof import prove

    _, half, _, both = made(name, work)
    settings = Settings(flavour="tensorrt-rtx", sm=(sm,), batch=(1, 1, 8))
    engine = work / "table.engine"
    a = build_engine(half, engine, settings)
    b = build_engine(both, engine, settings)
    engine.unlink()
    assert b.layers is not None
    proof = prove(both, b.layers)
    return (
        f"| {name} | {sm} | {a.seconds:.1f} s | {a.size_bytes / 1e6:.1f} MB | {b.seconds:.1f} s | "
        f"{b.size_bytes / 1e6:.1f} MB | {len(b.layers.low)} of {len(b.layers.compute)} | "
        f"{proof.low} of {len(proof.quantised)} | {len(proof.expanded)} |\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--make", help="only the ONNX files of this network")
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    if asked.make:
        make(asked.make, asked.work)
        return
    held = asked.out.read_text() if asked.out and asked.out.exists() else HEAD
    print(HEAD, end="")
    for name in asked.networks:
        for sm in SMS:
            start = f"| {name} | {sm} |"
            line = next((t for t in held.splitlines(True) if t.startswith(start)), None)
            if line is None:
                line = row(name, sm, asked.work)
                held += line
                if asked.out:
                    asked.out.write_text(held)
            print(line, end="", flush=True)


if __name__ == "__main__":
    main()
