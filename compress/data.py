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
        rank: int = 0, world: int = 1,
    ) -> Loader:  # fmt: skip
        """Batches of `(images [B, C, H, W] float32, labels [B] int64)`.

        With `train`, shuffled and augmented for `epoch`, the shorter last batch left out. With
        `world` processes, `batch_size` is that of all together and each loads its own part.
        """
        indices = self.dataset.splits[split]
        if train:
            generator = torch.Generator().manual_seed(_mix(self.seed, epoch))
            indices = indices[torch.randperm(len(indices), generator=generator).numpy()]
        chunks = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
        if train and len(chunks) > 1 and len(chunks[-1]) < batch_size:
            chunks.pop()
        chunks = [part for chunk in chunks if len(part := chunk[rank::world])]
        source = _Images(self, epoch, self._augmentation() if train else None)
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
        size = list(self.preprocess.size)
        if kind == "affine":
            return v2.RandomAffine(
                10, translate=(0.1, 0.1), scale=(0.9, 1.1), shear=5,
                interpolation=v2.InterpolationMode.BILINEAR,
            )  # fmt: skip
        if kind == "crop-flip":
            return v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()])
        return None


class Loader:
    """Iterates batches; an image that cannot be read raises its own error, also from a worker."""

    def __init__(self, loader: Any, length: int) -> None:
        self._loader, self._length = loader, length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self._loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch


class _Images(torch.utils.data.Dataset[Any]):
    def __init__(self, data: Data, epoch: int, augmentation: v2.Transform | None) -> None:
        self.data, self.epoch, self.augmentation = data, epoch, augmentation

    def __getitem__(self, index: int) -> tuple[Tensor, int] | UserError:
        try:
            image = self.data.dataset.image(index)
            if self.augmentation is not None:
                image = self._augmented(image, index)
            values = apply(self.data.preprocess, image)
        except UserError as error:
            return error
        return torch.from_numpy(values), int(self.data.dataset.labels[index])

    def _augmented(self, image: Image.Image, index: int) -> Image.Image:
        image = to_mode(image, self.data.preprocess.channels)
        # torch.manual_seed would also queue a call for CUDA, with a formatted traceback: 3 ms.
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(_mix(self.data.seed, self.epoch, index))
        changed: Image.Image = self.augmentation(image)  # type: ignore[misc]
        torch.set_rng_state(state)
        return changed


def _collate(items: list[Any]) -> tuple[Tensor, Tensor] | UserError:
    for item in items:
        if isinstance(item, UserError):
            return item
    images, labels = zip(*items, strict=True)
    return torch.stack(images), torch.tensor(labels)


def _mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
