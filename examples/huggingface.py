"""An image classifier of transformers with its own image processor, built from a config.

    python examples/huggingface.py [--short] [--out FOLDER]

Batches are dictionaries, as the library's own are; nothing is downloaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from vcompress import bench, compress

Item = dict[str, Any]


def pictures() -> list[Item]:
    """The digits as Pillow images, as `datasets` gives them."""
    found = load_digits()
    pixels = np.rint(found.images * (255 / 16)).astype(np.uint8)
    return [
        {"image": Image.fromarray(one).convert("RGB"), "label": int(label)}
        for one, label in zip(pixels, found.target, strict=True)
    ]


def main(short: bool, out: Path) -> bench.Bundle:
    torch.manual_seed(0)
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    config = ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128], depths=[1, 1, 1], layer_type="basic",
        num_labels=10,
    )  # fmt: skip
    net = ResNetForImageClassification(config)
    items = pictures()
    train, test = items[: 256 if short else 1400], items[1400:]
    epochs = 2 if short else 8

    def collate(batch: list[Item]) -> dict[str, Tensor]:
        found = processor([item["image"] for item in batch], return_tensors="pt")
        return {**found, "labels": torch.tensor([item["label"] for item in batch])}

    loader = DataLoader(train, 64, shuffle=True, collate_fn=collate)

    def fit(net: nn.Module, lr: float) -> None:
        optimizer = torch.optim.AdamW(net.parameters(), lr)
        for _ in range(epochs):
            net.train()
            for batch in loader:
                found = net(batch["pixel_values"])["logits"]
                loss = nn.functional.cross_entropy(found, batch["labels"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    fit(net, 3e-3)
    example = next(iter(loader))["pixel_values"][:1]
    compress.prune(net, example, macs=0.5, data=loader, output="logits")
    fit(net, 1e-3)
    q = compress.quantize(net, loader, output="logits")
    fit(q, 1e-4)
    return compress.save(
        q, out, example=example, output="logits", preprocess=processor, data=test,
        labels=[str(n) for n in range(10)],
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/huggingface"))
    given = parser.parse_args()
    bundle = main(given.short, given.out)
    score = bundle.history[-1].metrics.test
    print(f"{score.metric} {score.value:.2%}")
    with bench.load(bundle.path) as model:
        print(model.predict(pictures()[-1]["image"], top=1)[0])
