"""What an epoch of distillation costs when the teacher's outputs are cached. Prints a table.

    python tests/benchmarks/cached_teacher.py --rounds 5
    python tests/benchmarks/cached_teacher.py --images 320 --rounds 3

Epochs of plain training, of distillation from the cache and of distillation with the teacher at
work take turns, each of the same student on the same images, from the first batch to the state
that is saved at its end. Ratios are of medians. Filling the cache is timed apart. Run it alone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torchvision.models as tv

from vcompress.bench.tasks import open_dataset
from vcompress.compress.data.loader import Data
from vcompress.compress.stages import distill, finetune
from vcompress.compress.training import loop
from vcompress.compress.training.config import Context


def timed(run: Callable[[], Any]) -> float:
    """Seconds of the one epoch that `run` trains, without what comes before the first batch."""
    fit, save, marks = loop.fit, loop.save_state, []

    def begin(*args: Any, **options: Any) -> Any:
        options["on_epoch"] = lambda *_: marks.append(time.perf_counter())
        return fit(*args, **options)

    def end(*args: Any, **options: Any) -> None:
        save(*args, **options)
        marks.append(time.perf_counter())

    loop.fit, loop.save_state = begin, end  # type: ignore[assignment]
    try:
        run()
    finally:
        loop.fit, loop.save_state = fit, save
    first, last = marks
    return last - first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--student", default="resnet18")
    parser.add_argument("--teacher", default="resnet50")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--images", type=int, default=10**6)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--losses", nargs="*", default=["kd=1"])
    args = parser.parse_args()

    dataset = open_dataset("digits")
    splits = {"train": dataset.splits["train"][: args.images], "val": dataset.splits["val"][:16],
              "test": dataset.splits["test"]}  # fmt: skip
    preprocess = replace(dataset.default_preprocess, size=(args.size, args.size))
    data = Data(replace(dataset, splits=splits), preprocess)
    torch.manual_seed(0)
    teacher = tv.get_model(args.teacher, weights=None, num_classes=10).eval()
    common: dict[str, Any] = {"epochs": 1, "batch_size": args.batch_size}
    with tempfile.TemporaryDirectory() as folder:
        context = Context(data, Path(folder) / "work", teacher=teacher)
        cache = {"cache_teacher": str(Path(folder) / "cache"), "cache_views": 1}
        losses = tuple(args.losses)

        def train_once(way: str) -> float:
            student = tv.get_model(args.student, weights=None, num_classes=10)
            if way == "plain training":
                config = finetune.Config(**common)
                plain = replace(context, teacher=None)
                return timed(lambda: finetune.apply(student, config, plain))
            more = cache if way == "distillation, cached" else {}
            taught = distill.Config(**common, **more, losses=losses)
            return timed(lambda: distill.apply(student, taught, context))

        clock = time.perf_counter()
        epoch = train_once("distillation, cached")  # fills the cache, and warms up
        filling = time.perf_counter() - clock - epoch
        ways = ["plain training", "distillation, cached", "distillation, live"]
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(args.rounds):
            for way in ways:
                seconds[way].append(train_once(way))
    base = statistics.median(seconds[ways[0]])
    print(f"{args.student} from {args.teacher}, {len(splits['train'])} images of {args.size} px, "
          f"batch {args.batch_size}, {' '.join(losses)}, {torch.get_num_threads()} threads, "
          f"{args.rounds} rounds; before the first epoch {filling:.1f} s\n")  # fmt: skip
    print("| epoch of | median s | least s | most s | ratio to plain |")
    print("| --- | --- | --- | --- | --- |")
    for way, values in seconds.items():
        print(f"| {way} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} "
              f"| {statistics.median(values) / base:.3f} |")  # fmt: skip


if __name__ == "__main__":
    main()
