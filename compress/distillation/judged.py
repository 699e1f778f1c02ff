"""Images without labels alone: what a network decides about them stands for their labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vcompress.bench.data.dataset import Dataset
from vcompress.bench.errors import UserError
from vcompress.bench.tasks import CLASSIFICATION
from vcompress.export import parity

from ..data.loader import Data, spread
from ..data.unlabelled import NO_LABEL, with_unlabelled
from .teaching import Teacher

log = logging.getLogger(__name__)

FLAG = "--images"
HELD_OUT = 512
"""Most images that choose the best epoch where the data have no validation part."""
_AT_ONCE = 64


def judged_by(judges: nn.Module | Sequence[Teacher], data: Data, folder: str) -> Data:
    """The data with the images of `folder` alone to train on; their targets are the classes that a
    network gives them, or several teachers do together. The best epoch is chosen on the data's own
    validation part, else on up to a fifth of the folder, by agreement with those.

    Raises:
        UserError: no such folder, fewer than two images in it, or another task.
    """
    own = data.dataset
    if own.task != CLASSIFICATION:
        raise UserError(f"{FLAG} is for a classification, not for a {own.task}; give labels.")
    dataset = with_unlabelled(own, Path(folder), FLAG)
    extra = np.arange(len(own.targets), len(dataset.targets))
    teachers = [Teacher(judges, data.preprocess)] if isinstance(judges, nn.Module) else judges
    who = "the float network" if isinstance(judges, nn.Module) else "the teacher"
    log.info("asking %s about %d images of %s", who, len(extra), folder)
    targets = dataset.targets.copy()
    targets[extra] = _decisions(teachers, dataset, extra)
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


def _decisions(
    teachers: Sequence[Teacher], dataset: Dataset, numbers: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The class of each image, `[N] int64`, by the mean of the teachers' probabilities; `NO_LABEL`
    of one that cannot be read."""
    found = np.full(len(numbers), NO_LABEL, np.int64)
    for start in range(0, len(numbers), _AT_ONCE):
        chosen = numbers[start : start + _AT_ONCE]
        total, read = torch.zeros(0), list[int]()
        for teacher in teachers:
            values = [dataset.values(int(i), teacher.preprocess) for i in chosen]
            read = [n for n, image in enumerate(values) if image is not None]
            if not read:
                break
            images = torch.stack([torch.from_numpy(v) for v in values if v is not None])
            outputs = teacher.in_order(torch.from_numpy(parity.run_torch(teacher.model, images)))
            share = outputs.softmax(1)
            total = share if not len(total) else total + share
        if read:
            found[[start + n for n in read]] = total.argmax(1).numpy()
    return found
