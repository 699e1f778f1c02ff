"""Pruning to half the latency against pruning by MACs to the same latency. Prints a table.

    python tests/benchmarks/prune_latency.py --out runs/prune-latency

Run it alone. ResNet-18 and MobileNetV2, trained on scikit-learn's digits at 64 px (their weights
do not depend on the image's size), pruned for one image of 224 px in ONNX Runtime on one thread.
`--latency 0.5` chooses widths by measured times; the share of `--macs` is searched until that
network has the same measured latency. Both recover by distillation in the same number of epochs.
Ratios are interleaved by vbench's comparison; accuracy is that of test images, which chose nothing.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from pathlib import Path

import torch
from _digits import accuracy, trained
from torch import nn

from vcompress.bench.bundle import Preprocess
from vcompress.bench.tasks import open_dataset
from vcompress.bench.timing.environment import preflight
from vcompress.compress.data.loader import Data
from vcompress.compress.models.cost import count_macs
from vcompress.compress.pruning import prune
from vcompress.compress.pruning.latency import prune_to_latency
from vcompress.compress.pruning.latency_table import LatencyTable, vbench_measure, vbench_ratio
from vcompress.compress.stages import prune as stage
from vcompress.compress.tasks import training_task
from vcompress.compress.training.config import Context
from vcompress.compress.training.loop import fit
from vcompress.compress.training.recovery import from_teacher
from vcompress.export.onnx_export import export

EXAMPLE = torch.zeros(1, 3, 224, 224)


def write(model: nn.Module, path: Path) -> None:
    export(model, path, ("input", (3, 224, 224)))


def recovered(model: nn.Module, teacher: nn.Module, data: Data, seed: int, epochs: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        config = stage.Config(macs=0.5, epochs=epochs)
        context = Context(data, Path(folder), seed=seed)
        loss = from_teacher(teacher, config, training_task(data.dataset))
        fit(model, config, context, loss, name="recover")
    return accuracy(model, data)


def ratio(base: nn.Module, pruned: nn.Module, seconds: float) -> float:
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / "base.onnx", Path(folder) / "pruned.onnx"
        write(base, first)
        write(pruned, second)
        return vbench_ratio(seconds, "cpu", 1)(first, second)


def share_of_macs(base: nn.Module, wanted: float, seconds: float) -> float:
    """The `macs` at which the measured latency is `wanted` of the whole, by search."""
    low, high = 0.05, 0.95
    share = wanted
    for _ in range(6):
        model = copy.deepcopy(base)
        prune(model, EXAMPLE, macs=share, importance="l2")
        found = ratio(base, model, seconds)
        print(f"  macs={share:.3f} takes {found:.3f} of the latency", flush=True)
        if abs(found / wanted - 1) < 0.015:
            break
        low, high = (share, high) if found < wanted else (low, share)
        following = share * wanted / found
        share = following if low < following < high else (low + high) / 2
    return share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", nargs="*", default=["resnet18", "mobilenet_v2"])
    parser.add_argument("--latency", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--recover", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each comparison")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    lines = [
        "| network | pruned by | MACs | latency, measured | predicted | top-1 % (each seed) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in args.networks:
        environment = {"runtime": "onnxruntime", "threads": 1, **preflight().comparable()}
        accuracies: dict[str, list[float]] = {"whole": [], "latency": [], "macs": []}
        measured: dict[str, list[float]] = {"latency": [], "macs": []}
        macs: dict[str, list[float]] = {"latency": [], "macs": []}
        predicted, share = 0.0, 0.0
        for seed in range(args.seeds):
            data = Data(open_dataset("digits", seed=seed), Preprocess(size=(64, 64)), seed=seed)
            base = trained(name, data, seed, args.epochs, args.out / f"{name}-{seed}.safetensors")
            accuracies["whole"].append(accuracy(base, data))
            narrow = copy.deepcopy(base)
            table = LatencyTable.open(
                args.out / f"{name}.json", vbench_measure(0.3, "cpu", 1), environment,
                vbench_ratio(args.seconds, "cpu", 1),
            )  # fmt: skip
            report = prune_to_latency(
                narrow, EXAMPLE, table, write, latency=args.latency, importance="l2", seed=seed
            )
            predicted = report.predicted_ms / report.before_ms
            if not share:
                share = share_of_macs(base, ratio(base, narrow, args.seconds), args.seconds)
            thin = copy.deepcopy(base)
            prune(thin, EXAMPLE, macs=share, importance="l2")
            for way, model in (("latency", narrow), ("macs", thin)):
                measured[way].append(ratio(base, model, args.seconds))
                macs[way].append(count_macs(model, EXAMPLE) / count_macs(base, EXAMPLE))
                accuracies[way].append(recovered(model, base, data, seed, args.recover))
            print(name, seed, {w: v[-1] for w, v in accuracies.items()}, measured, flush=True)
        row = [name, "(whole)", "1", "1", "", _each(accuracies["whole"])]
        lines.append(f"| {' | '.join(row)} |")
        for way, asked in (("latency", f"{args.latency}"), ("macs", f"{share:.3f}")):
            row = [
                name, f"--{way} {asked}", f"{statistics.mean(macs[way]):.3f}",
                ", ".join(f"{r:.3f}" for r in measured[way]),
                f"{predicted:.3f}" if way == "latency" else "", _each(accuracies[way]),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(row)} |")
    print("\n" + "\n".join(lines))


def _each(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ({', '.join(f'{v:.2f}' for v in values)})"


if __name__ == "__main__":
    main()
