"""Criteria and scopes of pruning on one network, one data set, the same seeds. Prints a table.

    python tests/benchmarks/prune_criteria.py --seeds 3 --epochs 10 --recover 5
    python tests/benchmarks/prune_criteria.py --seeds 1 --epochs 2 --recover 1 --only l2

Trains the network on scikit-learn's digits, prunes copies of it to a share of the MACs and
recovers each by distillation. Top-1 accuracy on the validation images before and after recovery.
All of it takes hours on two cores: run it alone.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from pathlib import Path

import torch
import torchvision.models as tv
from torch import nn

from vcompress.bench.bundle import Preprocess
from vcompress.bench.data import open_dataset
from vcompress.compress.data import Data
from vcompress.compress.macs import count_parameters
from vcompress.compress.stage import Context
from vcompress.compress.stages import finetune
from vcompress.compress.stages import prune as stage

CRITERIA = ("l1", "l2", "bn", "lamp", "taylor", "hessian", "distillation", "random")
SCOPES = ("local", "kind", "global")


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    model.eval()
    right = total = 0
    for images, labels in data.loader("val", 64):
        right += int((model(images).argmax(1) == labels).sum())
        total += len(labels)
    return 100.0 * right / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--macs", type=float, default=0.25)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--recover", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=list(CRITERIA))
    parser.add_argument("--scopes", nargs="*", default=list(SCOPES))
    args = parser.parse_args()
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    whole: list[float] = []
    for seed in range(args.seeds):
        data = Data(open_dataset("digits", seed=seed), Preprocess(size=(args.size, args.size)),
                    seed=seed)  # fmt: skip
        torch.manual_seed(seed)
        with tempfile.TemporaryDirectory() as folder:
            base = tv.get_model(args.network, weights=None, num_classes=len(data.classes))
            context = Context(data, Path(folder), seed=seed)
            finetune.apply(base, finetune.Config(epochs=args.epochs), context)
        whole.append(accuracy(base, data))
        for criterion in args.only:
            for scope in args.scopes:
                results = []
                for epochs in (0, args.recover):
                    model = copy.deepcopy(base)
                    with tempfile.TemporaryDirectory() as folder:
                        config = stage.Config(macs=args.macs, importance=criterion, scope=scope,
                                              epochs=epochs)  # fmt: skip
                        stage.apply(model, config, Context(data, Path(folder), seed=seed))
                    results.append(accuracy(model, data))
                share = count_parameters(model) / count_parameters(base)
                found.setdefault((criterion, scope), []).append((*results, share))
    print(f"{args.network}, {args.size} px, macs={args.macs}, {args.seeds} seeds; unpruned "
          f"{statistics.mean(whole):.2f} %\n")  # fmt: skip
    print("| criterion | scope | at once % | recovered % | params |")
    print("| --- | --- | --- | --- | --- |")
    for (criterion, scope), rows in found.items():
        once, after, share = (statistics.mean(column) for column in zip(*rows, strict=True))
        print(f"| {criterion} | {scope} | {once:.2f} | {after:.2f} | {share:.3f} |")


if __name__ == "__main__":
    main()
