"""Images without labels: beside those of a data set, for distillation, or alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vcompress.bench.bundle import IMAGENET
from vcompress.bench.data.dataset import IGNORED, Dataset, OnBadImage
from vcompress.bench.data.folders import find_images
from vcompress.bench.data.preprocess import read_image, size_of
from vcompress.bench.errors import UserError
from vcompress.bench.tasks import CLASSIFICATION

NO_LABEL = -1


def with_unlabelled(dataset: Dataset, folder: Path, flag: str = "--unlabelled") -> Dataset:
    """`dataset` with the images of `folder` (at any depth) in its training split, without a target:
    -1, or NaN among numbers.

    Raises:
        UserError: no such folder, or no images in it.
    """
    files = _files(folder, flag)
    digest = hashlib.sha256(dataset.fingerprint.encode())
    _add(digest, folder, files)
    own, count, extra = dataset.image, len(dataset.targets), len(files)
    masks, targets = dataset.mask, dataset.targets
    if masks is not None:  # a row that says whether there is one
        targets = np.zeros((count, 1), np.int8)

    def image(number: int) -> Image.Image:
        return own(number) if number < count else read_image(files[number - count])

    def mask(number: int) -> Image.Image:
        assert masks is not None
        if number < count:
            return masks(number)
        return Image.new("L", size_of(files[number - count]), IGNORED)

    train = np.concatenate([dataset.splits["train"], np.arange(count, count + extra)])
    return replace(
        dataset,
        targets=np.concatenate([targets, _without_label(targets, extra)]),
        mask=None if masks is None else mask,
        splits={**dataset.splits, "train": train},
        fingerprint=digest.hexdigest(),
        image=image,
    )


def without_labels(
    folder: Path, flag: str, classes: Sequence[str], task: str = CLASSIFICATION,
    on_bad_image: OnBadImage = "fail",
) -> Dataset:  # fmt: skip
    """The images of `folder`, at any depth, all in the split `test`.

    Args:
        flag: that names the folder, for messages.
        classes: of the network that the images are for.

    Raises:
        UserError: no such folder, or no images in it.
    """
    files = _files(folder, flag)
    digest = hashlib.sha256()
    _add(digest, folder, files)
    none = np.zeros(0, np.int64)
    targets: NDArray[Any] = np.full(len(files), NO_LABEL, np.int64)
    if task != CLASSIFICATION:
        targets = np.full((len(files), len(classes)), np.nan, np.float32)
    return Dataset(
        str(folder), tuple(classes), targets,
        {"train": none, "val": none, "test": np.arange(len(files))}, digest.hexdigest(),
        lambda i: read_image(files[i]), IMAGENET, task=task, on_bad_image=on_bad_image,
        labelled=False,
    )  # fmt: skip


def has_label(targets: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows of targets `[N, ...]` are known, `[N]`."""
    known = ~np.isnan(targets) if targets.dtype.kind == "f" else targets != NO_LABEL
    found: NDArray[np.bool_] = known.reshape(len(targets), -1).all(1)
    return found


def _without_label(targets: NDArray[Any], count: int) -> NDArray[Any]:
    """Rows as `targets` has them, of images that nobody has labelled."""
    nothing = np.nan if targets.dtype.kind == "f" else NO_LABEL
    return np.full((count, *targets.shape[1:]), nothing, dtype=targets.dtype)


def _files(folder: Path, flag: str) -> tuple[Path, ...]:
    if not folder.is_dir():
        raise UserError(f"{flag} {folder}: no such folder.")
    files = find_images(folder).images
    if not files:
        raise UserError(f"{flag} {folder}: no images in this folder.")
    return files


def _add(digest: Any, folder: Path, files: Sequence[Path]) -> None:
    """Names and sizes of files to a hash."""
    for path in files:
        name = path.relative_to(folder).as_posix()
        digest.update(f"{name}\0{path.stat().st_size}\n".encode("utf-8", "surrogateescape"))
