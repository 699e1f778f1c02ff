"""The data that a bundle records, or noise where it records none."""

from __future__ import annotations

import torch
from torch import Tensor

from vcompress.bench.bundle import Bundle, InputSpec, Preprocess
from vcompress.bench.data.dataset import Dataset
from vcompress.bench.errors import UserError
from vcompress.bench.tasks import open_dataset

from ..data.loader import Data

PARITY_IMAGES = 64


def parity_images(dataset: Dataset | None, preprocess: Preprocess) -> Tensor:
    """Images of the validation split, or noise where there are none, `[N, C, H, W]`."""
    if dataset is None:
        return noise(PARITY_IMAGES, preprocess)
    return Data(dataset, preprocess).images("val", PARITY_IMAGES)


def noise(count: int, preprocess: Preprocess) -> Tensor:
    """Normal values, `[count, C, H, W]`, the same every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *InputSpec.of(preprocess).shape, generator=generator)


def open_recorded(bundle: Bundle) -> Dataset | None:
    """The data that the bundle was made with; None where it records none.

    Raises:
        UserError: the images have changed since.
    """
    record = bundle.data
    if record is None:
        return None
    dataset = open_dataset(
        record["source"], record.get("root"), record.get("seed", 0),
        record.get("on_bad_image", "fail"), bundle.task,
    )  # fmt: skip
    if dataset.fingerprint != record["fingerprint"]:
        raise UserError(
            f"{record['source']}: the images have changed since {bundle.path} was written, so its "
            f"held-out split is no longer held out. Name the data with --data to go on with them "
            f"as they are."
        )
    return dataset
