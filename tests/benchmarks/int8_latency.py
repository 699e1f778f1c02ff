"""Latency of an exported int8 network against onnxruntime.quantization's, interleaved.

    python tests/benchmarks/int8_latency.py --model resnet18 --size 224

Run it on a machine that does nothing else. Both files hold the same network with random weights:
one from `prepare`, `calibrate` and `export`, the other from `quantize_static` (QDQ, per channel,
uint8 activations, pre-processed as its manual says) of the exported float file. Printed are
medians of one image at
a time, the median of the ratios, and the compute nodes that ONNX Runtime does not run in int8. The
status is 1 where our file is slower by more than 1 % or a convolution of it stays in float.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import onnxruntime
import torch
import torchvision

from vcompress.compress import quantization as q
from vcompress.export import onnx_export


class Reader:
    """Calibration images as `quantize_static` wants them."""

    def __init__(self, images: torch.Tensor) -> None:
        self.rest: Iterator[torch.Tensor] = iter(torch.split(images, 1))

    def get_next(self) -> dict[str, Any] | None:
        found = next(self.rest, None)
        return None if found is None else {"input": found.numpy()}


def session(path: Path, threads: int) -> tuple[onnxruntime.InferenceSession, Counter[str]]:
    """A session and the operators that it really runs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_suffix(".optimised.onnx"))
    made = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    return made, Counter(n.op_type for n in nodes)


def main() -> int:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = torchvision.models.get_model(options.model).eval()
    shape = (3, options.size, options.size)
    images = torch.randn(8, *shape)
    prepared = q.prepare(model, images[:1], target="onnxruntime")
    q.calibrate(prepared, [images])
    with TemporaryDirectory() as folder:
        files = {n: Path(folder) / f"{n}.onnx" for n in ("float", "ours", "static", "ready")}
        onnx_export.export(model, files["float"], ("input", shape))
        onnx_export.export(q.to_export(prepared), files["ours"], ("input", shape))
        quant_pre_process(str(files["float"]), str(files["ready"]))
        quantize_static(
            str(files["ready"]), str(files["static"]), Reader(images),
            quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        opened = {n: session(files[n], options.threads) for n in ("float", "ours", "static")}
        sizes = {n: files[n].stat().st_size / 1e6 for n in opened}
        feed = {"input": images[:1].numpy()}
        times: dict[str, list[float]] = {n: [] for n in opened}
        for turn in range(options.rounds + 20):
            # The one that runs after the float file finds its 47 MB in the caches: take turns.
            pair = ("ours", "static") if turn % 2 else ("static", "ours")
            for name in (*pair, "float"):
                made = opened[name][0]
                start = time.perf_counter()
                made.run(None, feed)
                if turn >= 20:
                    times[name].append((time.perf_counter() - start) * 1e3)
    print(f"{options.model}, {options.size} px, batch 1, {options.threads} thread(s), "
          f"onnxruntime {onnxruntime.__version__}, {options.rounds} rounds\n")  # fmt: skip
    print("| file | median ms | MB | QLinearConv | left in float |\n|---|--:|--:|--:|---|")
    for name, (_, operators) in opened.items():
        left = {k: v for k, v in operators.items() if k in ("Conv", "FusedConv", "Gemm", "Add")}
        print(f"| {name} | {statistics.median(times[name]):.3f} | {sizes[name]:.1f} | "
              f"{operators['QLinearConv']} | {left or ''} |")  # fmt: skip
    ratio = statistics.median(a / b for a, b in zip(times["ours"], times["static"], strict=True))
    print(f"\nours / quantize_static: {ratio:.3f}")
    operators = opened["ours"][1]
    return int(ratio > 1.01 or operators["Conv"] + operators["FusedConv"] > 0)


if __name__ == "__main__":
    sys.exit(main())
