"""Images a second of our training loader against torchvision's reference one, in one run.

    python tests/benchmarks/loader_throughput.py

Run it on a machine that does nothing else. The script makes a folder of 224 px JPEGs. Both loaders
use the same transforms (random resized crop, mirror, float, normalise), batch size and number of
workers, and load whole epochs in turns, worker start-up included; ours draws every image's
augmentation from (seed, epoch, image). Printed are medians, the median of the ratios, and, for one
process, the processor time of an image, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms import v2

from vcompress.bench.bundle import IMAGENET
from vcompress.bench.tasks import open_dataset
from vcompress.compress.data.loader import Data

SIDE = 224


def write_images(folder: Path, count: int) -> None:
    """`count` JPEGs in each of two class folders: smooth shapes with a little noise, some 25 kB."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (14, 14, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.int16)
            pixels = (smooth + rng.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:04}.jpg", quality=90)


def reference(folder: Path, batch_size: int, workers: int) -> Any:
    """The transforms and the loader of torchvision's references/classification, Pillow backend."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(SIDE),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float, scale=True),
            v2.Normalize(IMAGENET.mean, IMAGENET.std),
            v2.ToPureTensor(),
        ]
    )
    return torch.utils.data.DataLoader(
        datasets.ImageFolder(str(folder), transform), batch_size, shuffle=True,
        num_workers=workers, drop_last=True,
    )  # fmt: skip


def timed(loader: Iterable[Any]) -> tuple[float, float]:
    """Images a second, and milliseconds of this process's processor time for an image."""
    start, used = time.perf_counter(), time.process_time()
    count = sum(len(labels) for _, labels in loader)
    seconds, processor = time.perf_counter() - start, time.process_time() - used
    return count / seconds, 1e3 * processor / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500, help="of each of the two classes")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "images"
        write_images(folder, options.images)
        whole = open_dataset(str(folder))
        everything = {**whole.splits, "train": np.arange(2 * options.images)}
        data = Data(replace(whole, splits=everything), IMAGENET, augment="crop-flip")
        print(f"{2 * options.images} JPEGs of {SIDE} px, batch {options.batch}\n")
        print("| workers | torchvision, images/s | ours, images/s | ours / torchvision | "
              "processor ms of an image, theirs and ours |\n|--:|--:|--:|--:|--:|")  # fmt: skip
        for workers in options.workers:
            theirs = reference(folder, options.batch, workers)
            rounds = []
            for epoch in range(options.rounds + 1):
                ours = data.loader("train", options.batch, train=True, epoch=epoch, workers=workers)
                pair = (timed(theirs), timed(ours)) if epoch % 2 else (timed(ours), timed(theirs))
                rounds.append(pair if epoch % 2 else pair[::-1])
            rounds = rounds[1:]  # the first fills the file cache
            rates = [statistics.median(r[side][0] for r in rounds) for side in (0, 1)]
            spent = [statistics.median(r[side][1] for r in rounds) for side in (0, 1)]
            ratio = statistics.median(b[0] / a[0] for a, b in rounds)
            processor = f"{spent[0]:.2f} {spent[1]:.2f}" if workers == 0 else ""
            print(f"| {workers} | {rates[0]:.0f} | {rates[1]:.0f} | {ratio:.2f} | {processor} |")


if __name__ == "__main__":
    main()
