"""Every way to distil R18 from R50 on the digits with a tenth of the labels. Prints a table.

    python tests/benchmarks/distill_methods.py --seeds 3
    python tests/benchmarks/distill_methods.py --seeds 1 --epochs 2 --teacher-epochs 1 --only kd

The teacher is trained on all training images with their labels, once for each seed, and kept. The
students see 144 of them, the same number of each class; in the rows "+ unlabelled" the other
training images join without their labels, for the same number of steps. Every row is written to
`rows.jsonl` as soon as it is there, so that a run that was stopped goes on; `--most 1` ends after
one row. Accuracy is on the 359 test images, of the epoch that is best on the validation images.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.models as tv
from _digits import LABELLED, accuracy, collect, make_teacher, tenth, whole

from vcompress.bench.data.dataset import Dataset
from vcompress.compress.data.loader import Data
from vcompress.compress.data.unlabelled import NO_LABEL
from vcompress.compress.distillation.terms import ON_FEATURES
from vcompress.compress.stages import distill, finetune
from vcompress.compress.training.config import Context


def rows() -> list[str]:
    """What is compared, in the order of the table."""
    methods = [name for name in distill.WEIGHTS if name != "self"]
    return ["alone", "kd + unlabelled", *methods, "kd+at", "self"]


def measure(row: str, seed: int, args: argparse.Namespace) -> float:
    """Test accuracy, per cent, of R18 trained in one way."""
    folder = args.keep
    data = whole(seed)
    few = replace(data, dataset=tenth(data.dataset))
    config: dict[str, Any] = {"epochs": args.epochs, "batch_size": LABELLED // 3}
    torch.manual_seed(seed)
    student = tv.resnet18(num_classes=len(data.classes))
    with tempfile.TemporaryDirectory() as work:
        context = Context(few, Path(work), seed=seed)
        if row == "alone":
            finetune.apply(student, finetune.Config(**config), context)
            return accuracy(student, data)
        if row == "self":
            distill.apply(student, distill.Config(method="self", **config), context)
            return accuracy(student, data)
        losses, _, unlabelled = row.partition(" + ")
        config["losses"] = tuple(losses.split("+"))
        if unlabelled:
            context = replace(context, data=replace(few, dataset=with_the_others(few, data)))
            images = len(context.data.dataset.splits["train"])
            config["epochs"] = max(1, round(args.epochs * LABELLED / images))
        outputs = "maps" if {"fitnet", "at"} & set(config["losses"]) else "last"
        config["cache_teacher"] = str(folder / f"cache-{seed}-{outputs}{unlabelled[:1]}")
        if not {*config["losses"]} & set(ON_FEATURES):
            config["cache_teacher"] = str(folder / f"cache-{seed}{unlabelled[:1]}")
        context = replace(context, teacher=make_teacher(folder, seed, args.teacher_epochs))
        distill.apply(student, distill.Config(**config), context)
        return accuracy(student, data)


def with_the_others(few: Data, data: Data) -> Dataset:
    """The 144 with their labels and the other training images without."""
    train = data.dataset.splits["train"]
    labels = data.dataset.targets.copy()
    labels[np.setdiff1d(train, few.dataset.splits["train"])] = NO_LABEL
    splits = {**few.dataset.splits, "train": train}
    fingerprint = f"{few.dataset.fingerprint}+"
    return replace(few.dataset, targets=labels, splits=splits, fingerprint=fingerprint)


def table(found: Sequence[dict[str, Any]], teachers: Sequence[float]) -> str:
    mean = {row: [f["test"] for f in found if f["row"] == row] for row in rows()}
    alone = {f["seed"]: f["test"] for f in found if f["row"] == "alone"}
    lines = ["| student | test accuracy, % | each seed | gain over alone, points |",
             "| --- | --- | --- | --- |"]  # fmt: skip
    if teachers:
        each = ", ".join(f"{t:.2f}" for t in teachers)
        lines.append(f"| teacher: R50 on all labels | {statistics.mean(teachers):.2f} | {each} | |")
    for row, values in mean.items():
        if not values:
            continue
        gains = [f["test"] - alone[f["seed"]] for f in found
                 if f["row"] == row and f["seed"] in alone]  # fmt: skip
        gain = f"{statistics.mean(gains):+.2f}" if gains and row != "alone" else ""
        each = ", ".join(f"{v:.2f}" for v in values)
        lines.append(f"| {row} | {statistics.mean(values):.2f} | {each} | {gain} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--teacher-epochs", type=int, default=12)
    parser.add_argument("--only", nargs="*", default=rows())
    parser.add_argument("--most", type=int, default=10**6, help="rows to add before it ends")
    parser.add_argument("--keep", type=Path, default=Path("runs/distill_methods"))
    args = parser.parse_args()
    args.keep.mkdir(parents=True, exist_ok=True)
    file = args.keep / "rows.jsonl"
    settings = {"epochs": args.epochs, "teacher_epochs": args.teacher_epochs}
    found = collect(
        file, settings, [{"row": r, "seed": s} for s in range(args.seeds) for r in args.only],
        lambda row, seed: {"test": measure(row, seed, args)}, args.most,
    )  # fmt: skip
    seeds = sorted({f["seed"] for f in found})
    teachers = [
        accuracy(make_teacher(args.keep, seed, args.teacher_epochs), whole(seed)) for seed in seeds
    ]
    found.sort(key=lambda f: f["seed"])
    print(f"\nR18 from R50, digits at 32 px, {LABELLED} labels, {args.epochs} epochs of them, "
          f"{len(seeds)} seeds\n")  # fmt: skip
    print(table(found, teachers))


if __name__ == "__main__":
    main()
