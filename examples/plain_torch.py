"""A loop in plain torch: train, prune, train, quantise, train, save, measure.

    python examples/plain_torch.py [--short] [--out FOLDER]

Scikit-learn's digits, a minute on two cores; with --short a few seconds.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from vcompress import bench, compress, export


def network() -> nn.Module:
    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]

    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)]
    return nn.Sequential(*block(1, 64, 1), *block(64, 128, 2), *block(128, 128, 2), *pool)


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Training and held-out images, `[N, 1, 8, 8]` with a mean of 0 and a deviation of 1."""
    found = load_digits()
    pixels = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    images, labels = (pixels - 0.305) / 0.376, torch.tensor(found.target)
    return TensorDataset(images[:1400], labels[:1400]), TensorDataset(images[1400:], labels[1400:])


def main(short: bool, out: Path) -> bench.Bundle:
    torch.manual_seed(0)
    epochs = 2 if short else 12
    train, test = digits()
    loader = DataLoader(train, batch_size=64, shuffle=True)
    example = train[0][0][None]
    pre = bench.Preprocess(size=(8, 8), mean=(0.305,), std=(0.376,), channels="L")
    names = [str(n) for n in range(10)]

    # The job: 25 lines at most.
    def fit(net: nn.Module, lr: float, teacher: nn.Module | None = None) -> None:
        plain = nn.CrossEntropyLoss()
        taught = compress.distiller(net, teacher) if teacher is not None else None
        optimizer = torch.optim.AdamW(net.parameters(), lr)
        for epoch in range(epochs):
            net.train()
            if taught is not None and epoch == epochs - 1:
                compress.freeze_norms(net)
            for images, labels in loader:
                found: Tensor = net(images)
                loss = taught(found, images, labels) if taught else plain(found, labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    net = network()
    fit(net, 3e-3)
    teacher = copy.deepcopy(net)
    report = compress.prune(net, example, macs=0.5, data=loader)
    fit(net, 1e-3, teacher)
    q = compress.quantize(net, loader, target="onnxruntime")
    fit(q, 1e-4, teacher)
    bundle = compress.save(q, out, example=example, labels=names, preprocess=pre, data=test)
    # Done.

    export.to_onnx(teacher, out.with_name("float.onnx"), example)
    found = bench.compare(out.with_name("float.onnx"), bundle, seconds=0.5 if short else 4)
    print(f"MACs {report.achieved['macs']:.1%}, SQNR {q.report.sqnr_db:.1f} dB before training")
    score = bundle.history[-1].metrics.test
    print(f"{score.metric} {score.value:.2%}, {found.comparison.verdict}")
    print(f"{1 / found.comparison.ratio.value:.1f} times the speed of the float network")
    return bundle


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/plain_torch"))
    given = parser.parse_args()
    main(given.short, given.out)
