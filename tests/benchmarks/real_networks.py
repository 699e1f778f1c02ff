"""What int8 costs a network with trained weights: accuracy, agreement, SQNR, parity, time.

    python tests/benchmarks/real_networks.py --images DIR --model mobilenet_v2 --weights FILE

`--images` is a folder with a folder of images for each class. The classes of the network's outputs
are those folders' names in order, or the lines of `--classes` where the folders are some of them.
A part of the images, drawn by `--seed`, calibrates; the next 128 judge the repairs; all are
classified by every file in ONNX Runtime, so the difference is paired. `--peers` adds ONNX Runtime's
own `quantize_static` of the same float file, per channel. Latency is the median of one image at a
time in one thread, all files in turn; on a busy machine only the ratio says something.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from _interleaved import interleaved
from torch import Tensor, nn

from vcompress import compress
from vcompress.bench.bundle import Preprocess
from vcompress.bench.data.preprocess import apply, read_image
from vcompress.compress.models.catalogue import build, make_spec
from vcompress.compress.quantization import to_export
from vcompress.export import onnx_export, parity
from vcompress.export.runtime import run_onnx

JUDGES = 128
Logits = npt.NDArray[Any]


@dataclass(frozen=True)
class Row:
    """One file of the table."""

    name: str
    path: Path
    seconds: float
    """Of calibration."""
    parity: str = ""


def read_images(folder: Path, classes: Path | None, pre: Preprocess) -> tuple[Tensor, Logits]:
    """Images [N, C, H, W] and their labels [N], by the name of the file."""
    given = classes.read_text().split() if classes else []
    names = given or sorted(p.name for p in folder.iterdir() if p.is_dir())
    files = sorted(p for p in folder.glob("*/*") if p.parent.name in names)
    images = np.stack([apply(pre, read_image(path)) for path in files])
    return torch.from_numpy(images), np.array([names.index(p.parent.name) for p in files])


def peers(source: Path, images: Tensor, folder: Path) -> Iterator[Row]:
    """The same network by ONNX Runtime's own tool."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader:
        def __init__(self) -> None:
            self.rest = iter(torch.split(images, 1))

        def get_next(self) -> dict[str, Any] | None:
            found = next(self.rest, None)
            return None if found is None else {"input": found.numpy()}

    ready = folder / "ready.onnx"
    quant_pre_process(str(source), str(ready))
    for method in ("MinMax", "Entropy"):
        path = folder / f"{method}.onnx"
        started = time.monotonic()
        quantize_static(
            str(ready), str(path), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[method],
        )  # fmt: skip
        yield Row(f"quantize_static, {method}", path, time.monotonic() - started)


def ours(
    name: str, net: nn.Module, images: Tensor, count: int, judged: Tensor, path: Path,
    options: dict[str, Any],
) -> Row:  # fmt: skip
    """A row of a network that `compress.quantize` calibrated."""
    started = time.monotonic()
    made = compress.quantize(
        net, images[: count + JUDGES], images=count, held_out=JUDGES, **options
    )
    seconds = time.monotonic() - started
    print(f"{name}: {made.report.sqnr_db_before:.1f} dB, repaired {made.report.sqnr_db:.1f} dB, "
          f"{made.report.repairs}", flush=True)  # fmt: skip
    deployed = to_export(made)
    onnx_export.export(deployed, path, ("input", tuple(images.shape[1:])))
    found = parity.check(deployed, path, judged)
    level = f"{found.optimised.top1_agreement:.2%}, {found.optimised.sqnr_db:.1f} dB"
    return Row(name, path, seconds, level if found.ok else f"failed: {level}")


def latencies(paths: dict[str, Path], image: Tensor, rounds: int) -> dict[str, float]:
    """Median milliseconds of one image, one thread, the files in turn."""
    times = interleaved(paths, image.numpy(), rounds)
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--model", required=True, help="name, or module:factory")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--classes", type=Path, help="file with the name of each output, in order")
    parser.add_argument("--outputs", type=int, default=1000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--resize", type=int, default=256)
    parser.add_argument("--mean", type=float, nargs=3, default=(0.485, 0.456, 0.406))
    parser.add_argument("--std", type=float, nargs=3, default=(0.229, 0.224, 0.225))
    parser.add_argument("--calibration", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--plain", action="store_true", help="also calibrate without repairs")
    parser.add_argument("--peers", action="store_true")
    options = parser.parse_args()
    size = (options.size, options.size)
    pre = Preprocess(size, options.resize, tuple(options.mean), tuple(options.std))
    images, labels = read_images(options.images, options.classes, pre)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(options.seed))
    images, labels = images[order], labels[order.numpy()]
    net = build(make_spec(options.model, options.outputs, size), options.weights).eval()
    count = options.calibration
    judged = images[count : count + JUDGES]
    ways: dict[str, dict[str, Any]] = {"int8": {}}
    if options.plain:
        ways["int8, no repairs"] = {"equalize": "off", "correct_bias": "off"}
    with TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "float.onnx"
        onnx_export.export(net, source, ("input", tuple(images.shape[1:])))
        rows = [Row("float", source, 0.0)]
        for way, how in ways.items():
            path = folder / f"{len(rows)}.onnx"
            rows.append(ours(way, net, images, count, judged, path, how))
        rows += peers(source, images[:count], folder) if options.peers else ()
        made = {r.name: run_onnx(r.path, images.numpy(), optimised=True)[0] for r in rows}
        times = latencies({r.name: r.path for r in rows}, images[:1], options.rounds)
    print(f"\n{options.model}, {len(images)} images, {count} calibrate, "
          f"onnxruntime {onnxruntime.__version__}\n")  # fmt: skip
    print("| file | top-1, % | images lost, won | agreement, % | SQNR, dB | parity | "
          "calibration, s | median ms |\n|---|--:|--:|--:|--:|---|--:|--:|")  # fmt: skip
    right = {name: logits.argmax(1) == labels for name, logits in made.items()}
    for row in rows:
        near = parity.compare(made["float"], made[row.name])
        lost = int((right["float"] & ~right[row.name]).sum())
        won = int((right[row.name] & ~right["float"]).sum())
        print(f"| {row.name} | {100 * right[row.name].mean():.2f} | {lost}, {won} | "
              f"{100 * near.top1_agreement:.2f} | {near.sqnr_db:.2f} | {row.parity} | "
              f"{row.seconds:.0f} | {times[row.name]:.2f} |")  # fmt: skip


if __name__ == "__main__":
    main()
