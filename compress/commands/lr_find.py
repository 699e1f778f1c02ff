"""`vcompress lr-find`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..options import Options
from ..training.config import TrainConfig
from ._flags import only


@dataclass(frozen=True, kw_only=True)
class Command:
    """Suggest a learning rate by a short training with rising rates; the model is not changed.

    Give the same options as for the training that follows.
    """

    model: str
    """Network: an alias, a torchvision name, timm:NAME, hf:NAME, module:factory, or a bundle."""
    common: Annotated[
        Options,
        only(
            Options, "task", "data", "data_root", "image_size", "preprocess", "augment", "head",
            "weights", "trust", "seed",
        ),
    ]  # fmt: skip
    training: Annotated[
        TrainConfig,
        only(TrainConfig, "batch_size", "optimizer", "weight_decay", "clip_norm", "workers"),
    ]
    low: float = 1e-6
    """First learning rate, above 0."""
    high: float = 1.0
    """Last learning rate, above --low; the sweep ends before it where the loss blows up."""
    steps: int = 100
    """Number of steps, one batch each, 10 or more."""
    out: Path | None = None
    """File of the plot, .svg. Default: under runs/."""

    def run(self) -> None:
        from vcompress.bench.bundle.output import check_output, write_text
        from vcompress.bench.errors import UserError

        from ..pipeline.resolve import RUNS, open_network
        from ..reporting.terminal import print_sweep
        from ..training.lr_finder import plot, sweep

        if self.out is not None and self.out.suffix != ".svg":
            raise UserError(f"--out {self.out}: expected a file name that ends in .svg.")
        if self.out is not None:
            check_output(self.out)
        network, data, name = open_network(self.model, self.common)
        found = sweep(
            network.model, data, self.training, low=self.low, high=self.high, steps=self.steps
        )
        out = self.out or RUNS / f"{name}-lr.svg"
        write_text(out, plot(found))
        print_sweep(found)
        print(f"plot: {out}")
