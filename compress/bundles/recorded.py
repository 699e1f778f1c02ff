"""The data that a bundle records, or noise where it records none."""

from __future__ import annotations

import torch
from torch import Tensor

from vcompress.bench import tasks
from vcompress.bench.bundle import Bundle, InputSpec, Preprocess
from vcompress.bench.data.dataset import Dataset
from vcompress.bench.errors import UserError

from ..data.loader import Data, split_of

PARITY_IMAGES = 64


def parity_images(dataset: Dataset | None, preprocess: Preprocess) -> Tensor:
    """Images of the validation split, or noise where there are none, `[N, C, H, W]`."""
    if dataset is None:
        return noise(PARITY_IMAGES, preprocess)
    return Data(dataset, preprocess).images(split_of(dataset, "val"), PARITY_IMAGES)


def noise(count: int, preprocess: Preprocess) -> Tensor:
    """Normal values, `[count, C, H, W]`, the same every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *InputSpec.of(preprocess).shape, generator=generator)


def open_recorded(bundle: Bundle, trust: str | None) -> Dataset | None:
    """The data that the bundle was made with; None where it records none.

    Args:
        trust: the names of own code that the user allows to be run.

    Raises:
        UserError: the images have changed since, or the record names code that is not trusted.
    """
    record = bundle.data
    if record is None:
        return None
    dataset = tasks.open_recorded(record, bundle.task, trust, str(bundle.path), bundle.labels)
    if dataset.fingerprint != record["fingerprint"]:
        raise UserError(
            f"{record['source']}: the images have changed since {bundle.path} was written, so its "
            f"held-out split is no longer held out. Name the data with --data to go on with them "
            f"as they are."
        )
    return dataset
