"""Images without labels alone: what a network decides about them stands for their labels."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vcompress.bench.errors import UserError
from vcompress.bench.tasks import CLASSIFICATION
from vcompress.export import parity

from ..data.loader import Data, spread
from ..data.unlabelled import NO_LABEL, with_unlabelled

log = logging.getLogger(__name__)

FLAG = "--images"
HELD_OUT = 512
"""Most images that choose the best epoch where the data have no validation part."""
_AT_ONCE = 64


def judged_by(network: nn.Module, data: Data, folder: str) -> Data:
    """The data with the images of `folder` alone to train on; their targets are the classes that
    `network` gives them. The best epoch is chosen on the data's own validation part, else on up to
    a fifth of the folder, by agreement with the network.

    Raises:
        UserError: no such folder, fewer than two images in it, or another task.
    """
    own = data.dataset
    if own.task != CLASSIFICATION:
        raise UserError(f"{FLAG} is for a classification, not for a {own.task}; give labels.")
    dataset = with_unlabelled(own, Path(folder), FLAG)
    extra = np.arange(len(own.targets), len(dataset.targets))
    log.info("asking the float network about %d images of %s", len(extra), folder)
    targets = dataset.targets.copy()
    targets[extra] = _decisions(network, replace(data, dataset=dataset), extra)
    extra = extra[targets[extra] != NO_LABEL]  # the others cannot be read
    if len(extra) < 2:
        raise UserError(f"{FLAG} {folder}: {len(extra)} images can be read; two are the least.")
    val = own.splits["val"]
    if own.labelled and len(val):
        train = extra
    else:
        held = spread(np.arange(len(extra)), min(HELD_OUT, max(1, len(extra) // 5)))
        train, val = np.delete(extra, held), extra[held]
    splits = {**dataset.splits, "train": train, "val": val}
    return replace(data, dataset=replace(dataset, targets=targets, splits=splits, labelled=True))


def _decisions(network: nn.Module, data: Data, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """The class of each image, `[N] int64`; `NO_LABEL` of one that cannot be read."""
    network.eval()
    found = np.full(len(numbers), NO_LABEL, np.int64)
    for start in range(0, len(numbers), _AT_ONCE):
        chosen = numbers[start : start + _AT_ONCE]
        read = [(n, data.dataset.values(int(i), data.preprocess)) for n, i in enumerate(chosen)]
        images = [(n, torch.from_numpy(values)) for n, values in read if values is not None]
        if images:
            outputs = parity.run_torch(network, torch.stack([values for _, values in images]))
            found[[start + n for n, _ in images]] = outputs.argmax(1)
    return found
