"""Criteria and scopes of pruning on one network, one data set, the same seeds: table and plot.

    python tests/benchmarks/prune_criteria.py --out runs/criteria          # ResNet-18, an hour
    python tests/benchmarks/prune_criteria.py --out runs/r50 --network resnet50 --only l2 \
        --scopes local --epochs 20 --recover 20

Trains the network on scikit-learn's digits, prunes copies of it to a share of the MACs and
recovers each by distillation. Top-1 accuracy on the held-out test images, which chose nothing,
before and after recovery. Every result is a line of `results.jsonl` under `--out`: a run that was
stopped goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from _digits import accuracy, trained
from torch import nn

from vcompress.bench.bundle import Preprocess
from vcompress.bench.tasks import open_dataset
from vcompress.compress.data.loader import Data
from vcompress.compress.models.cost import count_parameters
from vcompress.compress.stages import prune as stage
from vcompress.compress.tasks import training_task
from vcompress.compress.training.config import Context
from vcompress.compress.training.loop import fit
from vcompress.compress.training.recovery import from_teacher

CRITERIA = ("l1", "l2", "bn", "lamp", "taylor", "hessian", "distillation", "random")
SCOPES = ("local", "kind", "global")


def one(
    base: nn.Module, criterion: Any, scope: Any, data: Data, seed: int, args: argparse.Namespace
) -> dict[str, float]:
    model = copy.deepcopy(base)
    with tempfile.TemporaryDirectory() as folder:
        context = Context(data, Path(folder), seed=seed)
        config = stage.Config(macs=args.macs, importance=criterion, scope=scope, epochs=0)
        stage.apply(model, config, context)
        once = accuracy(model, data)
        config = stage.Config(macs=args.macs, epochs=args.recover)
        loss = from_teacher(base, config, training_task(data.dataset))
        fit(model, config, context, loss, name="recover")
    share = count_parameters(model) / count_parameters(base)
    return {"once": once, "recovered": accuracy(model, data), "params": share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--macs", type=float, default=0.25)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--recover", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=list(CRITERIA))
    parser.add_argument("--scopes", nargs="*", default=list(SCOPES))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "results.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    found: dict[tuple[str, str, int], dict[str, float]] = {}
    for line in lines:
        row = json.loads(line)
        found[row.pop("criterion"), row.pop("scope"), row.pop("seed")] = row
    for seed in range(args.seeds):
        preprocess = Preprocess(size=(args.size, args.size))
        data = Data(open_dataset("digits", seed=seed), preprocess, seed=seed)
        weights = args.out / f"{args.network}-{seed}.safetensors"
        base = trained(args.network, data, seed, args.epochs, weights)
        for criterion, scope in [
            ("none", "none"),
            *((c, s) for c in args.only for s in args.scopes),
        ]:
            if (criterion, scope, seed) in found:
                continue
            if criterion == "none":
                whole = accuracy(base, data)
                row = {"once": whole, "recovered": whole, "params": 1.0}
            else:
                row = one(base, criterion, scope, data, seed, args)
            found[criterion, scope, seed] = row
            with log.open("a") as file:
                file.write(
                    json.dumps({"criterion": criterion, "scope": scope, "seed": seed, **row})
                )
                file.write("\n")
    show(found, args)


def show(found: dict[tuple[str, str, int], dict[str, float]], args: argparse.Namespace) -> None:
    def column(criterion: str, scope: str, name: str) -> list[float]:
        return [row[name] for (c, s, _), row in found.items() if (c, s) == (criterion, scope)]

    whole = column("none", "none", "once")
    print(f"{args.network}, {args.size} px, macs={args.macs}, {args.seeds} seeds; whole network "
          f"{statistics.mean(whole):.2f} % ({min(whole):.2f} to {max(whole):.2f})\n")  # fmt: skip
    print("| criterion | scope | at once % | recovered % (lowest to highest seed) | parameters |")
    print("| --- | --- | --- | --- | --- |")
    for criterion in args.only:
        for scope in args.scopes:
            once, after, share = (
                column(criterion, scope, name) for name in ("once", "recovered", "params")
            )
            print(f"| {criterion} | {scope} | {statistics.mean(once):.2f} "
                  f"| {statistics.mean(after):.2f} ({min(after):.2f} to {max(after):.2f}) "
                  f"| {statistics.mean(share):.3f} |")  # fmt: skip
    plot(column, statistics.mean(whole), args)


def plot(column: Any, whole: float, args: argparse.Namespace) -> None:
    """Recovered accuracy of each seed, a colour for each scope."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
    for number, scope in enumerate(args.scopes):
        for place, criterion in enumerate(args.only):
            values = column(criterion, scope, "recovered")
            x = place + (number - (len(args.scopes) - 1) / 2) * 0.22
            label = scope if place == 0 else None
            axes.plot([x] * len(values), values, "o", color=f"C{number}", ms=4, alpha=0.5)
            axes.plot([x], [statistics.mean(values)], "_", color=f"C{number}", ms=14, label=label)
    axes.axhline(whole, color="0.5", ls="--", lw=1)
    axes.text(len(args.only) - 0.5, whole, "whole network", va="bottom", ha="right", fontsize=8)
    axes.set_xticks(range(len(args.only)), args.only)
    axes.set_ylabel("top-1 after recovery, %")
    axes.legend(title="scope", loc="lower left", ncols=3)
    figure.savefig(args.out / "criteria.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
