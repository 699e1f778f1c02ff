"""int8 against float and against ONNX Runtime's own tool: timm's networks, interleaved.

    python tests/benchmarks/placement.py --out placement.md
    python tests/benchmarks/placement.py efficientnet_b0 fastvit_t8 --seconds 20

Random weights, batch statistics of the images, 128 px (transformers and others of a fixed size at
that). The float file, ours and the one of `quantize_static` (QDQ, per channel, uint8 activations,
of the float file after its pre-processing) take turns, one image at a time in one thread; the
ratios are medians over the turns. "kernels" is float over int8 by the sums of the medians of each
node's time in ONNX Runtime's profile, on which other programs weigh less; so is the tool's number
in brackets. A run that was stopped goes on: rows in `--out` stay. Each network runs in a process
of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from _interleaved import interleaved

NAMES = (
    "efficientnet_b0", "mobilenetv3_large_100", "fastvit_t8", "ghostnet_100", "efficientformer_l1",
    "mobilenetv4_conv_small", "edgenext_small", "resnext50_32x4d", "densenet121",
    "vit_small_patch16_224", "convnext_tiny", "regnety_016", "hrnet_w18", "mixer_s16_224",
    "mobilenetv4_conv_medium", "res2net50_26w_4s", "repvgg_a2", "resnet50", "mobilenetv2_100",
    "tf_efficientnetv2_s",
)  # fmt: skip
FIXED = ("vit_", "mixer_", "efficientformer_")
"""Beginnings of the names of networks that take one size."""
HEAD = (
    "| network | px | float ms | int8 ms | float / int8 | tool / int8 | kernels "
    "| layers in integers | SQNR dB | parity |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|---|"
)


class Reader:
    """Calibration images as `quantize_static` wants them."""

    def __init__(self, images: Any) -> None:
        self.rest: Iterator[Any] = iter(images.split(1))

    def get_next(self) -> dict[str, Any] | None:
        found = next(self.rest, None)
        return None if found is None else {"input": found.numpy()}


def tool(source: Path, path: Path, images: Any) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = path.with_suffix(".ready.onnx")
    try:
        quant_pre_process(str(source), str(ready))
    except Exception:  # its symbolic shapes do not take every network
        quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
    quantize_static(
        str(ready), str(path), Reader(images), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip


def one(name: str, seconds: float) -> dict[str, Any]:
    import timm
    import torch

    from vcompress.compress import quantization as q
    from vcompress.export import integers, onnx_export, parity
    from vcompress.export.operator_times import operator_times

    torch.manual_seed(0)
    size = 224 if name.startswith(FIXED) else 128
    model = timm.create_model(name).eval()
    images = torch.randn(24, 3, size, size)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        model(images[:16])
    model.eval()
    prepared = q.prepare(model, images[:1], target="onnxruntime")
    q.calibrate(prepared, [images[:16]])
    deployed = q.to_export(prepared.eval())
    shape = ("input", (3, size, size))
    with TemporaryDirectory() as folder:
        files = {kind: Path(folder) / f"{kind}.onnx" for kind in ("float", "int8", "tool")}
        onnx_export.export(model, files["float"], shape)
        onnx_export.export(deployed, files["int8"], shape)
        held_out = images[16:]
        checked = parity.check(deployed, files["int8"], held_out)
        level = parity.compare(
            parity.run_torch(model, held_out), parity.run_torch(deployed, held_out)
        ).sqnr_db
        back = integers.read_back(files["int8"])
        try:
            tool(files["float"], files["tool"], images[:16])
        except Exception as error:
            del files["tool"]
            print(f"{name}: the tool: {error}", file=sys.stderr)
        image = images[:1].numpy()
        times = interleaved(files, image, 15, seconds)
        kernels = {
            kind: sum(operator_times(file, {"input": image}, runs=60).values())
            for kind, file in files.items()
        }
    ratios = {
        kind: statistics.median(a / b for a, b in zip(times[kind], times["int8"], strict=True))
        for kind in files
    }
    return {
        "size": size, "float_ms": statistics.median(times["float"]),
        "int8_ms": statistics.median(times["int8"]), "float": ratios["float"],
        "tool": ratios.get("tool"), "kernels": kernels["float"] / kernels["int8"],
        "tool_kernels": kernels["tool"] / kernels["int8"] if "tool" in kernels else None,
        "integer": back.integer, "meant": back.meant, "sqnr_db": level, "ok": checked.ok,
        "parity_db": checked.optimised.sqnr_db,
    }  # fmt: skip


def row(name: str, seconds: float) -> str:
    command = [sys.executable, __file__, name, "--one", "--seconds", str(seconds)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        why = (run.stderr.strip().splitlines() or ["killed"])[-1][:160]
        return f"| {name} | FAILED: {why} |"
    r = json.loads(run.stdout.splitlines()[-1])
    against = "" if r["tool"] is None else f"{r['tool']:.2f} ({r['tool_kernels']:.2f})"
    return (
        f"| {name} | {r['size']} | {r['float_ms']:.2f} | {r['int8_ms']:.2f} | {r['float']:.2f} | "
        f"{against} | {r['kernels']:.2f} | {r['integer']} of {r['meant']} | {r['sqnr_db']:.1f} | "
        f"{'ok' if r['ok'] else 'FAILED'}, {r['parity_db']:.0f} dB |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--seconds", type=float, default=15.0, help="of the turns of one network")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.names[0], options.seconds)))
        return
    lines = [HEAD]
    if options.out and options.out.exists():
        lines = [line for line in options.out.read_text().splitlines() if "FAILED: " not in line]
    done = {line.split("|")[1].strip() for line in lines if line.count("|") > 2}
    print("\n".join(lines), flush=True)
    for name in options.names:
        if name in done:
            continue
        lines.append(row(name, options.seconds))
        print(lines[-1], flush=True)
        if options.out:
            options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
