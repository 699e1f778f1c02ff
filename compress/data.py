"""The training side of the data: torch loaders from the same list of images and `Preprocess`.

Everything random is drawn from (seed, epoch, image), never from a running generator. So a resumed
run, any number of loader workers and any number of processes see the same images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from vcompress.bench.bundle import Preprocess
from vcompress.bench.data import Dataset
from vcompress.bench.errors import UserError
from vcompress.bench.preprocess import apply, to_mode

Augment = Literal["auto", "none", "affine", "crop-flip"]
_SMALL_PIXELS = 64


@dataclass(frozen=True)
class Data:
    """A data set, and how its images become the network's input."""

    dataset: Dataset
    preprocess: Preprocess
    augment: Augment = "auto"
    seed: int = 0
    views: tuple[Preprocess, ...] = ()
    """The same augmented image for networks that take other inputs: a teacher of another size."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.dataset.classes

    @property
    def example(self) -> Tensor:
        """One input, `[1, C, H, W] float32`, a real image of the training split."""
        first = int(self.dataset.splits["train"][0])
        return torch.from_numpy(apply(self.preprocess, self.dataset.image(first)))[None]

    def images(self, split: str, count: int) -> Tensor:
        """Up to `count` inputs spread evenly over the split, `[N, C, H, W] float32`."""
        indices = self.dataset.splits[split]
        chosen = indices[np.linspace(0, len(indices) - 1, min(count, len(indices))).astype(int)]
        return torch.stack(
            [torch.from_numpy(apply(self.preprocess, self.dataset.image(int(i)))) for i in chosen]
        )

    def loader(
        self, split: str, batch_size: int, train: bool = False, *, epoch: int = 0, workers: int = 0,
        rank: int = 0, world: int = 1, view: int | None = None, samples: bool = False,
    ) -> Loader:  # fmt: skip
        """Batches of `(images [B, C, H, W] float32, labels [B] int64)`.

        With `train`, shuffled and augmented for `epoch`, the shorter last batch left out. With
        `world` processes, `batch_size` is that of all together and each loads its own part. A
        `view` is augmented as that epoch is, whatever the order. With `samples` each batch is
        `(images, labels, Samples)`.
        """
        indices = self.dataset.splits[split]
        if train:
            generator = torch.Generator().manual_seed(_mix(self.seed, epoch))
            indices = indices[torch.randperm(len(indices), generator=generator).numpy()]
        chunks = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
        if train and len(chunks) > 1 and len(chunks[-1]) < batch_size:
            chunks.pop()
        chunks = [part for chunk in chunks if len(part := chunk[rank::world])]
        augmented = train or view is not None
        source = _Images(
            self, epoch if view is None else view, self._augmentation() if augmented else None,
            samples,
        )  # fmt: skip
        loader = torch.utils.data.DataLoader(
            source,
            batch_sampler=[c.tolist() for c in chunks],
            num_workers=workers,
            collate_fn=_collate,
        )
        return Loader(loader, len(chunks))

    def _augmentation(self) -> v2.Transform | None:
        kind = self.augment
        if kind == "auto":
            kind = "affine" if max(self.preprocess.size) <= _SMALL_PIXELS else "crop-flip"
        sizes = [preprocess.size for preprocess in (self.preprocess, *self.views)]
        size = [max(side) for side in zip(*sizes, strict=True)]
        if kind == "affine":
            return v2.RandomAffine(
                10, translate=(0.1, 0.1), scale=(0.9, 1.1), shear=5,
                interpolation=v2.InterpolationMode.BILINEAR,
            )  # fmt: skip
        if kind == "crop-flip":
            return v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()])
        return None


@dataclass(frozen=True)
class Samples:
    """Which images a batch holds, for a loss that asks."""

    indices: Tensor
    """Their numbers in the data set, `[B] int64`."""
    view: int
    """The epoch that they are augmented for."""
    others: tuple[Tensor, ...]
    """The same images for each of `Data.views`, `[B, C, H, W] float32`."""


class Loader:
    """Iterates batches; an image that cannot be read raises its own error, also from a worker."""

    def __init__(self, loader: Any, length: int) -> None:
        self._loader, self._length = loader, length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch


class _Images(torch.utils.data.Dataset[Any]):
    def __init__(
        self, data: Data, epoch: int, augmentation: v2.Transform | None, samples: bool = False
    ) -> None:
        self.data, self.epoch, self.augmentation = data, epoch, augmentation
        self.samples = samples

    def __getitem__(self, index: int) -> tuple[Any, ...] | UserError:
        try:
            image = self.data.dataset.image(index)
            if self.augmentation is not None:
                image = self._augmented(image, index)
            values = torch.from_numpy(apply(self.data.preprocess, image))
            if not self.samples:
                return values, int(self.data.dataset.labels[index])
            others = tuple(torch.from_numpy(apply(view, image)) for view in self.data.views)
        except UserError as error:
            return error
        sample = index, self.epoch, others
        return values, int(self.data.dataset.labels[index]), sample

    def _augmented(self, image: Image.Image, index: int) -> Image.Image:
        colours = {p.channels for p in (self.data.preprocess, *self.data.views)}
        image = to_mode(image, "RGB" if "RGB" in colours else "L")
        # torch.manual_seed would also queue a call for CUDA, with a formatted traceback: 3 ms.
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(_mix(self.data.seed, self.epoch, index))
        changed: Image.Image = self.augmentation(image)  # type: ignore[misc]
        torch.set_rng_state(state)
        return changed


def _collate(items: list[Any]) -> tuple[Any, ...] | UserError:
    for item in items:
        if isinstance(item, UserError):
            return item
    images, labels, *more = zip(*items, strict=True)
    batch = torch.stack(images), torch.tensor(labels)
    if not more:
        return batch
    indices, views, others = zip(*more[0], strict=True)
    stacked = tuple(torch.stack(images) for images in zip(*others, strict=True))
    return *batch, Samples(torch.tensor(indices), views[0], stacked)


def _mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
