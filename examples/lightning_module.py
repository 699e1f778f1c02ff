"""A LightningModule: the trainer fits it, and the library changes the network inside.

pip install lightning
python examples/lightning_module.py [--short] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import copy
import logging
import warnings
from pathlib import Path

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from vcompress import bench, compress


class Classifier(lightning.LightningModule):
    """Any network, with or without a teacher."""

    def __init__(self, net: nn.Module, lr: float, teacher: nn.Module | None = None) -> None:
        super().__init__()
        self.net, self.lr = net, lr
        self.taught = compress.distiller(net, teacher) if teacher is not None else None

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
        images, labels = batch
        found = self.net(images)
        if self.taught is not None:
            return self.taught(found, images, labels)
        return nn.functional.cross_entropy(found, labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.net.parameters(), self.lr)


def fit(model: Classifier, loader: DataLoader, epochs: int) -> None:
    lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(model, loader)  # fmt: skip


def main(short: bool, out: Path) -> bench.Bundle:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.manual_seed(0)
    found = load_digits()
    pixels = torch.tensor(found.images, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1) / 16
    images = nn.functional.interpolate((pixels - 0.305) / 0.376, size=32, mode="bilinear")
    labels = torch.tensor(found.target)
    count = 256 if short else 1400
    loader = DataLoader(TensorDataset(images[:count], labels[:count]), 64, shuffle=True)
    test = TensorDataset(images[1400:], labels[1400:])
    epochs = 1 if short else 8

    net = resnet18(num_classes=10)
    fit(Classifier(net, 1e-3), loader, epochs)
    teacher = copy.deepcopy(net)
    compress.prune(net, images[:1], macs=0.3, data=loader)
    fit(Classifier(net, 1e-3, teacher), loader, epochs)
    q = compress.quantize(net, loader)
    fit(Classifier(q, 1e-4, teacher), loader, 1)
    return compress.save(
        q, out, example=images[:1], data=test, factory="resnet18",
        preprocess=bench.Preprocess(size=(32, 32), mean=(0.305,) * 3, std=(0.376,) * 3),
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/lightning_module"))
    given = parser.parse_args()
    score = main(given.short, given.out).history[-1].metrics.test
    print(f"{score.metric} {score.value:.2%}")
