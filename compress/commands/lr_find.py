"""`vcompress lr-find`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Command:
    """Suggest a learning rate: a short training with ever higher ones; nothing is changed."""

    model: str
    """Alias, torchvision name, timm:NAME, module:factory, or a bundle."""
    data: str | None = None
    """digits, a folder of class folders, or torchvision:NAME. Default: the bundle's, or digits."""
    data_root: str | None = None
    """Where the files of torchvision:NAME are."""
    image_size: int | None = None
    """Side of the network's square input, pixels."""
    preprocess: str | None = None
    """imagenet, or JSON (or a .json file)."""
    augment: Literal["auto", "none", "affine", "crop-flip", "rand", "trivial"] = "auto"
    """As in the training to come."""
    weights: str | None = None
    """Where a model named here starts: default or a file."""
    trust: str | None = None
    """Your own module:factory that a bundle may run."""
    seed: int = 0
    """Of the split, the weights, the order and the augmentation."""
    batch_size: int = 64
    """As in the training to come."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """As in the training to come."""
    weight_decay: float = 0.02
    """As in the training to come."""
    clip_norm: float = 5.0
    """As in the training to come."""
    workers: int = 0
    """Processes that load images."""
    low: float = 1e-6
    """First rate."""
    high: float = 1.0
    """Last rate; the sweep ends before it where the loss blows up."""
    steps: int = 100
    """One batch each."""
    out: Path | None = None
    """Where the plot goes, an .svg file; default: under runs/."""

    def run(self) -> None:
        from vcompress.bench.errors import UserError

        from ..options import Options
        from ..pipeline.resolve import RUNS, open_network
        from ..reporting.terminal import print_sweep
        from ..training.config import TrainConfig
        from ..training.lr_finder import plot, sweep

        if self.out is not None and self.out.suffix != ".svg":
            raise UserError(f"--out {self.out}: expected a file name that ends in .svg.")
        options = Options(
            data=self.data, data_root=self.data_root, image_size=self.image_size,
            preprocess=self.preprocess, augment=self.augment, weights=self.weights,
            trust=self.trust, seed=self.seed,
        )  # fmt: skip
        network, data, name = open_network(self.model, options)
        config = TrainConfig(
            batch_size=self.batch_size, optimizer=self.optimizer, weight_decay=self.weight_decay,
            clip_norm=self.clip_norm, workers=self.workers,
        )  # fmt: skip
        found = sweep(network.model, data, config, low=self.low, high=self.high, steps=self.steps)
        out = self.out or RUNS / f"{name}-lr.svg"
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(plot(found), encoding="utf-8")
        print_sweep(found)
        print(f"plot: {out}")
