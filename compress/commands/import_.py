"""`vcompress import`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..options import Options
from ._flags import only
from ._show import show


@dataclass(frozen=True, kw_only=True)
class Command:
    """Take in a backbone that was fine-tuned elsewhere, and measure it."""

    model: str
    """Name of the network: an alias, a torchvision name, timm:NAME, hf:FOLDER or module:factory."""
    weights: str
    """File of the checkpoint: a state_dict, one of torchvision, timm, Lightning or DataParallel, or
    .safetensors; the word default means the weights in the folder of hf:FOLDER."""
    labels: Annotated[Path | None, tyro.conf.arg(aliases=("--classes",))] = None
    """Text file with a class in each line, in the order of the outputs. The folders of --data may
    be some of them: by the name, its first word (a wnid) or the number of the output. Default:
    those of ImageNet where the data are of it, else the data's."""
    out: Path | None = None
    """Folder of the bundle. Default: under runs/."""
    common: Annotated[
        Options,
        only(
            Options, "data_root", "overwrite", "checkpoint_key", "head", "output", "trust",
            task="Task of the network: classification, multilabel or regression. Default: "
            "classification.",
            data="Data set that the accuracy is measured on: digits, a folder, torchvision:NAME "
            "or your own module:factory.",
            image_size="Side of the network's square input, pixels. Default: by the data.",
            preprocess="Preprocessing: imagenet, or JSON (or a .json file). Default: the data's "
            "usual one, else imagenet.",
            data_licence="Licence of the images: an SPDX identifier such as CC-BY-4.0, or words.",
            weights_licence="Licence of the checkpoint: the same.",
            seed="Random seed for the split, 0 or more.",
        ),
    ]  # fmt: skip

    def run(self) -> None:
        from ..delivery.import_checkpoint import import_checkpoint

        show(import_checkpoint(self.model, self.weights, self.labels, self.out, self.common))
