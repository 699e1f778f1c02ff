"""Accuracy of float, calibrated and trained int8 networks, and of the file in ONNX Runtime.

    python tests/benchmarks/quantize_accuracy.py --work /tmp/accuracy

Two real data sets at 32 px: scikit-learn's digits (1,797 images), and Fashion-MNIST (Zalando
Research, MIT licence), which comes as Debian's package `dataset-fashion-mnist`: installed, or else
fetched and unpacked under `--work` with `apt-get download`. A folder of class folders may be given
instead. Each row is kept in `--work`, so a run that was stopped goes on; delete a line of
`rows.jsonl` to have it made again. Three accuracies are of one network: as it was trained, with
batch norms and sums in floating point; as it is exported, folded and in ONNX Runtime's arithmetic,
in torch; and the file in ONNX Runtime. The last column is the file against the exported network.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vcompress.bench.bundle import InputSpec, Preprocess
from vcompress.bench.tasks import open_dataset
from vcompress.compress.data.loader import Data
from vcompress.compress.models import changes
from vcompress.compress.models.catalogue import build, make_spec
from vcompress.compress.pipeline.measure import score
from vcompress.compress.quantization import to_export
from vcompress.compress.stages import finetune, quantize
from vcompress.compress.training.config import Context
from vcompress.compress.training.loop import evaluate
from vcompress.export import onnx_export

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FASHION = Preprocess(size=(32, 32), mean=(0.286,) * 3, std=(0.353,) * 3)
TRAIN, TEST = 3000, 5000
NONE = {"equalize": "off", "correct_bias": "off", "adaround": "off"}
WAYS: dict[str, dict[str, Any]] = {
    "ptq, no repairs": {"method": "ptq", **NONE},
    "ptq, equalised": {"method": "ptq", **NONE, "equalize": "on"},
    "ptq, bias corrected": {"method": "ptq", **NONE, "correct_bias": "on"},
    "ptq, AdaRound": {"method": "ptq", **NONE, "adaround": "on"},
    "ptq": {"method": "ptq"},
    "qat": {"method": "qat"},
    "ptq, 4 bits": {"method": "ptq", "weight_bits": 4},
    "qat, 4 bits": {"method": "qat", "weight_bits": 4},
}


def fashion(work: Path) -> Path:
    """Where torchvision finds Fashion-MNIST; fetched from Debian where it is not installed."""
    raw = work / "FashionMNIST" / "raw"
    if not (raw / "t10k-labels-idx1-ubyte").exists():
        source = DEBIAN
        if not source.is_dir():
            name = "dataset-fashion-mnist"
            subprocess.run(["apt-get", "download", name], cwd=work, check=True)
            package = next(work.glob(f"{name}_*.deb"))
            subprocess.run(["dpkg-deb", "-x", str(package), str(work)], check=True)
            source = work / DEBIAN.relative_to("/")
        raw.mkdir(parents=True, exist_ok=True)
        for packed in source.glob("*.gz"):
            (raw / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    return work


def open_data(name: str, work: Path) -> Data:
    """The data set, of Fashion-MNIST a part that two cores can train on."""
    if name != "fashion":
        dataset = open_dataset(name)
        return Data(dataset, replace(dataset.default_preprocess, size=(32, 32)))
    dataset = open_dataset("torchvision:FashionMNIST", str(fashion(work)))
    rng = np.random.default_rng(0)
    fewer = {"train": TRAIN, "val": 1000, "test": TEST}
    splits = {k: np.sort(rng.permutation(v)[: fewer[k]]) for k, v in dataset.splits.items()}
    return Data(replace(dataset, splits=splits), FASHION)


def float_network(name: str, data: Data, epochs: int, folder: Path) -> torch.nn.Module:
    """The fine-tuned network; trained once."""
    torch.manual_seed(0)
    model = build(make_spec(name, len(data.classes), data.preprocess.size))
    file = folder / "float.safetensors"
    if file.exists():
        return changes.load(model, changes.load_tensors(file)).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.1  # MobileNetV3's 0.01 is for runs of many thousand steps
    config = finetune.Config(epochs=epochs, lr=2e-3)
    finetune.apply(model, config, Context(data, folder / "training", resume=True))
    changes.save_tensors(model, file)
    return model.eval()


def accuracy(model: torch.nn.Module, data: Data, folder: Path) -> float:
    """Top-1 in torch on the test split, in percent."""
    return 100 * evaluate(model, Context(data, folder), finetune.Config(), "test")


def deployed(model: torch.nn.Module, data: Data, folder: Path) -> float:
    """Top-1 of the exported file in ONNX Runtime, in percent."""
    file = folder / "model.onnx"
    onnx_export.export(model, file, InputSpec.of(data.preprocess))
    return 100 * score(file, data).value


def row(name: str, way: str, data: Data, epochs: int, folder: Path) -> dict[str, Any]:
    """One line of the table."""
    model = float_network(name, data, epochs, folder)
    started = time.monotonic()
    if way == "float":
        found = {"torch": accuracy(model, data, folder), "file": deployed(model, data, folder)}
        return {**found, "seconds": time.monotonic() - started}
    config = quantize.Config(**WAYS[way])
    outcome = quantize.apply(model, config, Context(data, folder / way))
    seconds = time.monotonic() - started
    exported = to_export(outcome.model.eval())
    return {
        "torch": accuracy(outcome.model, data, folder),
        "exported": accuracy(exported, data, folder),
        "file": deployed(exported, data, folder),
        "seconds": seconds,
        "sqnr_db": outcome.details["calibration"]["sqnr_db"],
        "config": {k: v for k, v in asdict(config).items() if k in WAYS[way]},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    ways = ["float", *WAYS]
    rows = sorted(rows, key=lambda r: (r["data"], r["model"], ways.index(r["way"])))
    lines = [
        "| data | network | method | as trained, top-1 % | as exported, in torch | file "
        "| file against float, points | file against exported | SQNR after calibration, dB | s |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    floats = {(r["data"], r["model"]): r["file"] for r in rows if r["way"] == "float"}
    for r in rows:
        base = floats.get((r["data"], r["model"]))
        lost = "" if r["way"] == "float" or base is None else f"{r['file'] - base:+.2f}"
        level = f"{r['sqnr_db']:.1f}" if "sqnr_db" in r else ""
        lines.append(
            f"| {r['data']} ({r['test']:,}) | {r['model']} | {r['way']} | {r['torch']:.2f} "
            f"| {r.get('exported', r['torch']):.2f} | {r['file']:.2f} | {lost} "
            f"| {r['file'] - r.get('exported', r['torch']):+.2f} | {level} | {r['seconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", nargs="+", default=["digits", "fashion"])
    parser.add_argument("--models", nargs="+", default=["r18", "mnv2", "mnv3s"])
    parser.add_argument("--ways", nargs="+", default=["float", *WAYS])
    parser.add_argument("--epochs", type=int, default=25, help="of the float network on digits")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    store = options.work / "rows.jsonl"
    rows = [json.loads(line) for line in store.read_text().splitlines()] if store.exists() else []
    for source in options.data:
        data = open_data(source, options.work)
        epochs = options.epochs if source == "digits" else max(1, options.epochs // 2)
        for name in options.models:
            for way in options.ways:
                key = {"data": source, "model": name, "way": way}
                if any(key.items() <= r.items() for r in rows):
                    continue
                folder = options.work / source.replace("/", "_") / name
                folder.mkdir(parents=True, exist_ok=True)
                found = row(name, way, data, epochs, folder)
                rows.append({**key, "test": len(data.dataset.splits["test"]), **found})
                with store.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    print("\n" + table(rows))


if __name__ == "__main__":
    main()
