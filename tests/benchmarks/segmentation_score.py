"""What scoring a segmenter costs beside the network: 500 images of 512 x 1,024 with 19 classes.

    python tests/benchmarks/segmentation_score.py [--images 500]

It prints seconds of one processor and memory for update, intervals and comparison, for logits at
full size, logits at a stride of 8, and classes; each form in a process of its own. The maps are
smooth fields with noise, of which each image takes another cut. The same scores are held against
torchmetrics where that is installed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES, SIZE = 19, (512, 1024)
FORMS = ("logits", "logits at stride 8", "classes")


def fields(noise: float, seed: int, stride: int) -> NDArray[np.float32]:
    """Logits `[K, H, 2 W]`, wider than an image, so that each one is another cut of them."""
    rng = np.random.default_rng(seed)
    height, width = SIZE[0] // stride, 2 * SIZE[1] // stride
    smooth = [
        Image.fromarray(np.random.default_rng(k).normal(size=(6, 24)).astype(np.float32))
        .resize((width, height), Image.Resampling.BICUBIC)
        for k in range(CLASSES)
    ]  # fmt: skip
    found = np.stack([np.asarray(one) for one in smooth])
    return found + noise * rng.normal(size=found.shape).astype(np.float32)


def images(form: str, noise: float, count: int) -> Iterator[tuple[NDArray, NDArray]]:
    """Outputs and a mask of one image after the other."""
    stride = 8 if "stride" in form else 1
    wide, truth = fields(noise, 1, stride), fields(0, 0, 1).argmax(0).astype(np.uint8)
    truth[:8] = 255
    best = wide.argmax(0).astype(np.uint8) if form == "classes" else wide
    for i in range(count):
        start = 8 * (i * 37 % (SIZE[1] // 8))
        cut = slice(start // stride, (start + SIZE[1]) // stride)
        yield np.ascontiguousarray(best[..., cut])[None], truth[None, :, start : start + SIZE[1]]


def resident() -> float:
    """Memory of this process, 10^6 bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def measure(form: str, count: int) -> tuple[float, float, float, float]:
    """Seconds of update, compute and compare, and the megabytes that two evaluators added."""
    from vcompress.bench.tasks.segmentation import TASK

    names = [f"class {k}" for k in range(CLASSES)]
    scores, update = [], 0.0
    feeds = [images(form, noise, count) for noise in (0.02, 0.03)]
    firsts = [next(feed) for feed in feeds]
    TASK.evaluator(names).update({"output": firsts[0][0]}, firsts[0][1])
    before = most = resident()
    for feed, first in zip(feeds, firsts, strict=True):
        evaluator = TASK.evaluator(names)
        evaluator.update({"output": first[0]}, first[1])
        for output, mask in feed:
            start = time.process_time()
            evaluator.update({"output": output}, mask)
            update += time.process_time() - start
            most = max(most, resident())
        start = time.process_time()
        scores.append(evaluator.compute())
        compute = time.process_time() - start
    start = time.process_time()
    change = TASK.compare(*scores)
    compare = time.process_time() - start
    most = max(most, resident())
    print(
        f"  mIoU {scores[0].value:.4f}, boundary F1 {scores[0].values['boundary_f1'].value:.4f}, "
        f"negative flips {change.negative_flips:.4f}"
    )
    return update / 2, compute, compare, most - before


def against_torchmetrics() -> None:
    """mIoU of random maps and of scenes moved by a few pixels, with ignored pixels and classes that
    are nowhere. torchmetrics divides in float32; its counts are whole."""
    try:
        import torch
        from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex
    except ImportError:
        print("torchmetrics is not installed")
        return
    from vcompress.bench.data.scenes import open_scenes
    from vcompress.bench.tasks.segmentation import TASK

    rng, scenes, worst, worst_float32 = np.random.default_rng(0), open_scenes(0), 0.0, 0.0
    for n in range(20):
        if n % 2:
            classes, truth = 13, np.stack([scenes.scene(8 * n + i).mask for i in range(6)])
            said = np.roll(truth, (n, 1), (1, 2))
        else:
            classes = int(rng.integers(3, 40))
            truth = rng.integers(0, classes - 2, (6, 50, 60)).astype(np.uint8)
            other = rng.integers(0, classes - 1, truth.shape)
            said = np.where(rng.random(truth.shape) < 0.6, truth, other).astype(np.uint8)
        truth = np.where(rng.random(truth.shape) < 0.05, 255, truth).astype(np.uint8)
        evaluator = TASK.evaluator(list(map(str, range(classes))))
        counted = MulticlassConfusionMatrix(classes, ignore_index=255)
        reported = MulticlassJaccardIndex(classes, ignore_index=255)
        for one, mask in zip(said, truth, strict=True):
            evaluator.update({"output": one[None]}, mask[None])
            for metric in (counted, reported):
                metric.update(
                    torch.from_numpy(one)[None].long(), torch.from_numpy(mask)[None].long()
                )
        counts = counted.compute().double()
        unions = counts.sum(0) + counts.sum(1) - counts.diag()
        theirs = float((counts.diag() / unions)[unions > 0].mean())
        worst = max(worst, abs(evaluator.value() - theirs))
        worst_float32 = max(worst_float32, abs(evaluator.value() - float(reported.compute())))
    print(
        f"largest difference of mIoU to torchmetrics: {worst:.1e} from its counts in float64, "
        f"{worst_float32:.1e} to its result in float32"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=500)
    count = parser.parse_args().images
    for form in FORMS:
        print(form)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            update, compute, compare, memory = pool.apply(measure, (form, count))
        print(
            f"  {count} images: {update:.1f} s of update ({1e3 * update / count:.1f} ms each), "
            f"{compute:.2f} s of intervals, {compare:.2f} s of comparison, {memory:.0f} MB for two"
        )
    against_torchmetrics()


if __name__ == "__main__":
    main()
