"""Images without labels beside those of the data set, for distillation alone."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vcompress.bench.data.dataset import Dataset
from vcompress.bench.data.folders import find_images
from vcompress.bench.data.preprocess import read_image
from vcompress.bench.errors import UserError

NO_LABEL = -1


def with_unlabelled(dataset: Dataset, folder: Path) -> Dataset:
    """`dataset` with the images of `folder` (at any depth) in its training split, without a target:
    -1, or NaN among numbers.

    Raises:
        UserError: no such folder, or no images in it.
    """
    if not folder.is_dir():
        raise UserError(f"--unlabelled {folder}: no such folder.")
    files = find_images(folder).images
    if not files:
        raise UserError(f"--unlabelled {folder}: no images in this folder.")
    digest = hashlib.sha256(dataset.fingerprint.encode())
    for path in files:
        name = path.relative_to(folder).as_posix()
        digest.update(f"{name}\0{path.stat().st_size}\n".encode("utf-8", "surrogateescape"))
    own, count, extra = dataset.image, len(dataset.targets), len(files)

    def image(number: int) -> Image.Image:
        return own(number) if number < count else read_image(files[number - count])

    train = np.concatenate([dataset.splits["train"], np.arange(count, count + extra)])
    return replace(
        dataset,
        targets=np.concatenate([dataset.targets, _without_label(dataset.targets, extra)]),
        splits={**dataset.splits, "train": train},
        fingerprint=digest.hexdigest(),
        image=image,
    )


def has_label(targets: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows of targets `[N, ...]` are known, `[N]`."""
    known = ~np.isnan(targets) if targets.dtype.kind == "f" else targets != NO_LABEL
    found: NDArray[np.bool_] = known.reshape(len(targets), -1).all(1)
    return found


def _without_label(targets: NDArray[Any], count: int) -> NDArray[Any]:
    """Rows as `targets` has them, of images that nobody has labelled."""
    nothing = np.nan if targets.dtype.kind == "f" else NO_LABEL
    return np.full((count, *targets.shape[1:]), nothing, dtype=targets.dtype)
