"""`vcompress import`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..options import Options
from ._show import show


@dataclass(frozen=True, kw_only=True)
class Command:
    """Take in a backbone that was fine-tuned elsewhere, and measure it."""

    model: str
    """Alias, torchvision name, timm:NAME or module:factory."""
    weights: str
    """state_dict, torchvision, timm, Lightning or DataParallel checkpoint, or .safetensors."""
    labels: Path | None = None
    """Text file, one class a line, in the order of the outputs."""
    out: Path | None = None
    """Where the bundle goes."""
    data: str | None = None
    """To measure the accuracy on: digits, a folder of class folders, or torchvision:NAME."""
    data_root: str | None = None
    """Where the files of torchvision:NAME are."""
    image_size: int | None = None
    """Side of the network's square input, pixels."""
    preprocess: str | None = None
    """imagenet, or JSON (or a .json file). Default: the data's usual one, else imagenet."""
    data_licence: str | None = None
    """Of the images: an SPDX identifier such as CC-BY-4.0, or words."""
    weights_licence: str | None = None
    """Of the checkpoint."""
    seed: int = 0
    """Of the split."""
    overwrite: bool = False
    """Replace a bundle that is already at --out."""

    def run(self) -> None:
        from ..delivery.import_checkpoint import import_checkpoint

        options = Options(
            data=self.data, data_root=self.data_root, image_size=self.image_size,
            preprocess=self.preprocess, seed=self.seed, overwrite=self.overwrite,
            data_licence=self.data_licence, weights_licence=self.weights_licence,
        )  # fmt: skip
        show(import_checkpoint(self.model, Path(self.weights), self.labels, self.out, options))
