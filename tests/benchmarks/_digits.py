"""What benchmarks on scikit-learn's digits share: data, trained networks, rows that are kept."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.models as tv
from safetensors.torch import load_file, save_file
from torch import nn

from vcompress.bench.data.dataset import Dataset
from vcompress.bench.tasks import open_dataset
from vcompress.compress.data.loader import Data
from vcompress.compress.stages import finetune
from vcompress.compress.training.config import Context

LABELLED = 144
"""A tenth of the training images, the same number of each class."""


def whole(seed: int) -> Data:
    """All images, at 32 px."""
    dataset = open_dataset("digits", seed=seed)
    return Data(dataset, dataset.default_preprocess, seed=seed)


def tenth(dataset: Dataset) -> Dataset:
    """`dataset` with `LABELLED` training images, the classes in turn."""
    train = dataset.splits["train"]
    by_class = [train[dataset.targets[train] == k] for k in range(len(dataset.classes))]
    in_turn = [int(c[n]) for n in range(max(map(len, by_class))) for c in by_class if n < len(c)]
    chosen = np.array(sorted(in_turn[:LABELLED]))
    return replace(dataset, splits={**dataset.splits, "train": chosen},
                   fingerprint=f"{dataset.fingerprint}-{LABELLED}")  # fmt: skip


@torch.no_grad()
def accuracy(model: nn.Module, data: Data, split: str = "test") -> float:
    """Top-1 in torch, per cent."""
    model.eval()
    right = total = 0
    for images, labels in data.loader(split, 64):
        right += int((model(images).argmax(1) == labels).sum())
        total += len(labels)
    return 100.0 * right / total


def trained(name: str, data: Data, seed: int, epochs: int, file: Path) -> nn.Module:
    """The torchvision network `name`, trained from random weights once and kept in `file`."""
    torch.manual_seed(seed)
    model: nn.Module = tv.get_model(name, weights=None, num_classes=len(data.classes))
    if file.is_file():
        model.load_state_dict(load_file(file))
        return model.eval()
    with tempfile.TemporaryDirectory() as work:
        config = finetune.Config(epochs=epochs)
        finetune.apply(model, config, Context(data, Path(work), seed=seed))
    temporary = file.with_suffix(".writing")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, temporary)
    temporary.replace(file)
    return model.eval()


def make_teacher(folder: Path, seed: int, epochs: int) -> nn.Module:
    """R50 on all labels."""
    file = folder / f"teacher-{seed}-{epochs}.safetensors"
    return trained("resnet50", whole(seed), seed, epochs, file)


def collect(
    file: Path, settings: Mapping[str, Any], wanted: Sequence[Mapping[str, Any]],
    measure: Callable[..., Mapping[str, Any]], most: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """All rows of `file` (JSON, one a line) with `settings`, after `measure` has added what is
    missing of `wanted`; each is written as soon as it is there.

    Args:
        wanted: what tells rows apart, the arguments of `measure`.
        most: rows to add before it ends.

    Raises:
        SystemExit: with status 3, there is more to do.
    """
    lines = file.read_text().splitlines() if file.is_file() else []
    names = list(wanted[0]) if wanted else []
    read = [f for f in map(json.loads, lines) if f.items() >= settings.items()]
    found = {tuple(row[name] for name in names): row for row in read}
    missing = [row for row in wanted if tuple(row.values()) not in found]
    for row in missing[:most]:
        clock = time.monotonic()
        result = {**settings, **row, **measure(**row)}
        result["seconds"] = round(time.monotonic() - clock, 1)
        with file.open("a") as stream:
            stream.write(json.dumps(result) + "\n")
        found[tuple(row.values())] = result
        print(json.dumps(result), flush=True)
    if len(missing) > most:
        raise SystemExit(3)
    return list(found.values())
