"""Images with what belongs to them, and splits that a seed fixes for good.

Training and measuring list their images here, so both mean the same thing by "held out".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..bundle import Preprocess
from ..errors import UserError
from .preprocess import apply, apply_to_mask

OnBadImage = Literal["fail", "skip"]

LARGEST = float(np.finfo(np.float32).max)
"""Largest number that a target can be: targets are float32."""
IGNORED = 255
"""In a mask: a pixel of no class, which neither trains nor counts."""
_STRIP = 2**16
"""Pixels that are hashed at once."""


@dataclass(frozen=True)
class Dataset:
    """Images with targets. `val` chooses the best epoch; `test` is only ever measured on."""

    source: str
    classes: tuple[str, ...]
    """Names of the classes, labels or numbers, in the order of the network's outputs."""
    targets: npt.NDArray[Any]
    """A row for each image, as the task has it: `[N] int64` a class, `[N, K] int8` labels,
    `[N, K] float32` numbers; `[N, 0]` where each has a mask."""
    splits: Mapping[str, npt.NDArray[np.int64]]
    fingerprint: str
    """SHA-256 over the keys, sizes and targets of the images and over the splits."""
    image: Callable[[int], Image.Image]
    """Image number i, decoded."""
    default_preprocess: Preprocess
    root: str | None = None
    seed: int = 0
    on_bad_image: OnBadImage = "fail"
    """What to do with an image that cannot be read."""
    drawn: bool = False
    """Whether the seed draws the splits of images that their owner has not divided."""
    undivided: str = ""
    """Why the seed could not divide them, so that all are in `test`; else empty."""
    left_out: str = ""
    """What lies beside the images and is none, counted by kind; empty where there is nothing."""
    task: str = "classification"
    """What the targets are for, see `bench/tasks/`."""
    labelled: bool = True
    """Whether the targets are known: without them nothing is scored, and no bundle records it."""
    numbered: bool = False
    """Whether the folders of the classes are called by the numbers of outputs."""
    mask: Callable[[int], Image.Image] | None = None
    """Mask of image number i, of the image's size: mode `L`, the number of the class of each pixel,
    `IGNORED` where there is none. None where the targets are rows."""
    bad_images: dict[int, str] = field(default_factory=dict, compare=False)
    """Number to message of the images that were skipped so far."""

    def record(self) -> dict[str, Any] | None:
        """What a bundle's manifest keeps of it; None where nothing could open it again."""
        if not self.labelled:
            return None
        more: dict[str, Any] = {"numbered": True} if self.numbered else {}
        if self.on_bad_image != "fail":
            more["on_bad_image"] = self.on_bad_image
        return {
            "source": self.source,
            "root": self.root,
            "seed": self.seed,
            "fingerprint": self.fingerprint,
            "splits": {name: len(indices) for name, indices in self.splits.items()},
            **more,
        }

    def values(self, i: int, preprocess: Preprocess) -> npt.NDArray[np.float32] | None:
        """Image number i as the network's input, `[C, H, W] float32`; None where it cannot be read
        and such images are skipped.

        Raises:
            UserError: it cannot be read, and such images are not skipped.
        """
        try:
            return apply(preprocess, self.image(i))
        except UserError as error:
            if self.on_bad_image == "fail":
                raise
            self.bad_images[i] = str(error)
            return None

    def both(
        self, i: int, preprocess: Preprocess
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]] | None:
        """`values` of image number i, and what belongs to it as the task's evaluator takes it: its
        row of `targets`, or its mask at the size of the network's input, `[H, W] uint8`. None
        where one of the two cannot be read and such images are skipped.

        Raises:
            UserError: one cannot be read, and such images are not skipped.
        """
        values = self.values(i, preprocess)
        if values is None or self.mask is None:
            return None if values is None else (values, self.targets[i])
        try:
            return values, apply_to_mask(preprocess, self.mask(i))
        except UserError as error:
            if self.on_bad_image == "fail":
                raise
            self.bad_images[i] = str(error)
            return None


def watched(dataset: Dataset) -> tuple[Dataset, Callable[[], str]]:
    """The data set, and what gives the SHA-256 over the pixels of every image that was asked of it
    so far, in that order. It is over what was decoded, so that two ways to preprocess the same
    images have the same."""
    digest = hashlib.sha256()

    def image(i: int) -> Image.Image:
        found = dataset.image(i)
        palette = bytes(found.getpalette() or ()) if found.mode == "P" else b""
        digest.update(f"{found.mode} {found.size}\0".encode() + palette)
        # In strips that stay in the processor's cache: half the time of one copy of a photograph.
        rows = max(_STRIP // max(found.width, 1), 1)
        for top in range(0, found.height, rows):
            bottom = min(top + rows, found.height)
            digest.update(found.crop((0, top, found.width, bottom)).tobytes())
        return found

    return replace(dataset, image=image), digest.hexdigest


def batches(
    dataset: Dataset, split: str, preprocess: Preprocess, batch_size: int
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[Any]]]:
    """Batches `[B, C, H, W] float32` with targets `[B, ...]`, in order, the last one shorter.
    Images that are skipped leave their batch shorter."""
    yield from batches_of(dataset, dataset.splits[split], preprocess, batch_size)


def batches_of(
    dataset: Dataset, indices: npt.NDArray[np.int64], preprocess: Preprocess, batch_size: int
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[Any]]]:
    """As `batches`, of some images of the data set."""
    for start in range(0, len(indices), batch_size):
        read = (dataset.both(int(i), preprocess) for i in indices[start : start + batch_size])
        found = [pair for pair in read if pair is not None]
        if found:
            images, targets = zip(*found, strict=True)
            yield np.stack(images), np.stack(targets)
