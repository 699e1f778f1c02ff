"""A training of a tiny net that tests start as processes of their own: one, two, or to be killed.

`python training_script.py OUT JSON` with a JSON object: net, config, resume, slow_s.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from vcompress.bench.bundle import Preprocess
from vcompress.bench.data.dataset import Dataset
from vcompress.bench.data.splits import split_by_seed
from vcompress.compress.data.loader import Data
from vcompress.compress.training.config import Context, TrainConfig


def make_net(kind: str) -> nn.Module:
    torch.manual_seed(7)
    norm = nn.GroupNorm(2, 8) if kind == "group" else nn.BatchNorm2d(8)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.0 if kind == "group" else 0.2),
        nn.Linear(32, 3),
    )  # fmt: skip


def make_data(slow_s: float = 0.0) -> Data:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 16)
    pixels = rng.integers(0, 150, (48, 12, 12, 3))
    for number, label in enumerate(labels):
        pixels[number, ..., label] += 60
    images = [Image.fromarray(p.astype(np.uint8)) for p in pixels]

    def image(number: int) -> Image.Image:
        time.sleep(slow_s)
        return images[number]

    keys, classes = [str(n) for n in range(48)], ("a", "b", "c")
    dataset = Dataset(
        "memory", classes, labels, split_by_seed(keys, labels, classes, 0), "fixed", image,
        Preprocess((12, 12), mean=(0.3,) * 3, std=(0.2,) * 3),
    )  # fmt: skip
    return Data(dataset, dataset.default_preprocess, "affine")


def train(
    out: Path, net: str, config: dict[str, Any], resume: bool = False, slow_s: float = 0.0
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The final weights and what `fit` says."""
    from vcompress.compress.training.loop import fit

    model = make_net(net)
    context = Context(make_data(slow_s), out, seed=3, resume=resume)
    found = fit(model, TrainConfig(**config), context, name="train")
    return model.state_dict(), found


def main() -> None:
    from accelerate import PartialState
    from safetensors.torch import save_file

    out, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    weights, found = train(out, **options)
    PartialState().wait_for_everyone()  # a later stage needs the group of processes still
    if PartialState().is_main_process:
        save_file({k: v.contiguous() for k, v in weights.items()}, out / "weights.safetensors")
        found["processes"] = PartialState().num_processes
        (out / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
