"""Distilled, pruned and quantised jointly, against one after the other on the same budget.

    python tests/benchmarks/joint.py --seeds 3
    python tests/benchmarks/joint.py --seeds 1 --epochs 10 --teacher-epochs 1

R18 on the digits with 144 labels, half of its MACs, int8 for ONNX Runtime, the teacher an R50 that
was trained on all labels (kept, the same as that of distill_methods.py). Every way has the same
number of epochs: half for distillation, three tenths for pruning in three steps, a fifth for
quantisation. Test accuracy is that of the quantised network in torch. Every row is written to
`joint.jsonl` as soon as it is there; `--most 1` ends after one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision.models as tv
from _digits import LABELLED, accuracy, collect, make_teacher, tenth, whole
from torch import nn

from vcompress.compress.models.cost import count_macs
from vcompress.compress.pipeline.joint import Joint
from vcompress.compress.stages import distill, prune, quantize
from vcompress.compress.training.config import Context

STAGES = {"distill": distill, "prune": prune, "quantize": quantize}
WAYS = {
    "one after the other": "each with its own schedule; prune and quantize learn from the network "
    "as it came",
    "the same teacher": "each with its own schedule, under the R50",
    "joint": "one schedule, under the R50",
}


def measure(way: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    data = whole(seed)
    few = replace(data, dataset=tenth(data.dataset))
    teacher = make_teacher(args.keep, seed, args.teacher_epochs)
    tables = Joint(student="r18", epochs=args.epochs, prune={"macs": 0.5}).tables("r50")
    torch.manual_seed(seed)
    model: nn.Module = tv.resnet18(num_classes=len(data.classes))
    before = count_macs(model, data.example)
    after = {}
    with tempfile.TemporaryDirectory() as work:
        for table in tables:
            name = table.pop("stage")
            for key in ("name", "teacher", "student"):
                table.pop(key, None)
            if way != "joint":  # the budget stays, the rates and schedules are the stage's own
                for key in ("lr", "part", "warmup_epochs"):
                    table.pop(key, None)
            if "part" in table:
                table["part"] = tuple(table["part"])
            config = STAGES[name].Config(**table, batch_size=LABELLED // 3)
            own = way == "one after the other" and name != "distill"
            context = Context(few, Path(work) / name, seed, teacher=None if own else teacher)
            model = STAGES[name].apply(model, config, context).model
            after[name] = accuracy(model, data)
            if name == "prune":
                share = count_macs(model, data.example) / before
    return {"test": after["quantize"], "after": after, "macs": share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--teacher-epochs", type=int, default=12)
    parser.add_argument("--most", type=int, default=10**6, help="rows to add before it ends")
    parser.add_argument("--keep", type=Path, default=Path("runs/distill_methods"))
    args = parser.parse_args()
    args.keep.mkdir(parents=True, exist_ok=True)
    file = args.keep / "joint.jsonl"
    settings = {"epochs": args.epochs, "teacher_epochs": args.teacher_epochs}
    found = collect(
        file, settings, [{"way": w, "seed": s} for s in range(args.seeds) for w in WAYS],
        partial(measure, args=args), args.most,
    )  # fmt: skip
    seeds = len({f["seed"] for f in found})
    print(
        f"\nR18 from R50, half the MACs, int8, {args.epochs} epochs of 144 labels, {seeds} seeds\n"
    )
    print("| way | distilled % | pruned % | int8 % | int8, each seed |")
    print("| --- | --- | --- | --- | --- |")
    for way, text in WAYS.items():
        rows = sorted((f for f in found if f["way"] == way), key=lambda f: int(f["seed"]))
        mean = {n: statistics.mean(f["after"][n] for f in rows) for n in STAGES}
        each = ", ".join(f"{f['test']:.2f}" for f in rows)
        print(f"| {way}: {text} | {mean['distill']:.2f} | {mean['prune']:.2f} | "
              f"{mean['quantize']:.2f} | {each} |")  # fmt: skip


if __name__ == "__main__":
    main()
