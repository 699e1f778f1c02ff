"""Torch loaders from the list of images and the `Preprocess` of `bench`.

Everything random is drawn from (seed, epoch, image), never from a running generator. So a resumed
run, any number of loader workers and any number of processes see the same images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from vcompress.bench.bundle import Preprocess
from vcompress.bench.data.dataset import Dataset
from vcompress.bench.data.preprocess import apply, apply_to_mask, to_mode
from vcompress.bench.errors import UserError

from .augment import Augment, Mix, crops, image_and_mask_transform, image_transform, seeded

_MOST_BAD_IN_A_ROW = 100


def split_of(dataset: Dataset, wanted: str) -> str:
    """The split `wanted`, or `test` where the data have none: they may be there to measure on."""
    return wanted if len(dataset.splits[wanted]) else "test"


_Augmentation = Callable[[Image.Image, Any], tuple[Image.Image, Any]]
"""From an image and its mask, or None, to changed ones."""


@dataclass(frozen=True)
class Data:
    """A data set, and how its images become the network's input."""

    dataset: Dataset
    preprocess: Preprocess
    augment: Augment = "auto"
    seed: int = 0
    views: tuple[Preprocess, ...] = ()
    """The same augmented image for networks that take other inputs: a teacher of another size."""
    yields_views: bool = True
    """Whether batches hold them; else they only have their part in the augmentation, which must
    not change when what a teacher says of them is read from a cache."""
    erase: float = 0.0
    """Probability that a rectangle of a training image is erased."""
    mixup: float = 0.0
    cutmix: float = 0.0
    """Mix training images and their labels, which then are `[B, K] float32`; 0 is off."""
    balanced: bool = False
    """Show each class equally often: images of rare ones come several times in an epoch."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.dataset.classes

    @property
    def example(self) -> Tensor:
        """One input, `[1, C, H, W] float32`: a real image of the training split, or of the data
        that have none."""
        for index in self.dataset.splits[split_of(self.dataset, "train")]:
            values = self.dataset.values(int(index), self.preprocess)
            if values is not None:
                return torch.from_numpy(values)[None]
        raise UserError("None of the training images can be read. Look at --data.")

    def images(self, split: str, count: int) -> Tensor:
        """Up to `count` inputs spread evenly over the split, `[N, C, H, W] float32`."""
        chosen = spread(self.dataset.splits[split], count)
        found = [self.dataset.values(int(i), self.preprocess) for i in chosen]
        return torch.stack([torch.from_numpy(values) for values in found if values is not None])

    def loader(
        self, split: str, batch_size: int, train: bool = False, *, epoch: int = 0, workers: int = 0,
        rank: int = 0, world: int = 1, view: int | None = None, samples: bool = False,
    ) -> Loader:  # fmt: skip
        """Batches of `(images [B, C, H, W] float32, targets [B, ...])`, the targets as the data set
        has them: `[B] int64` classes, `[B, K] int8` labels, `[B, K] float32` numbers, `[B, H, W]
        uint8` masks.

        With `train`, shuffled and augmented for `epoch`, the shorter last batch left out. With
        `world` processes, `batch_size` is that of all together and each loads its own part. A
        `view` is augmented as that epoch is, whatever the order. With `samples` each batch is
        `(images, targets, Samples)`.
        """
        indices = self.dataset.splits[split]
        if train:
            indices = self._order(indices, epoch)
        chunks = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
        if train and len(chunks) > 1 and len(chunks[-1]) < batch_size:
            chunks.pop()
        chunks = [part for chunk in chunks if len(part := chunk[rank::world])]
        augmented = train or view is not None
        source = _Images(
            self, epoch if view is None else view, self._augmentation() if augmented else None,
            samples, self.dataset.splits[split] if augmented else None,
        )  # fmt: skip
        loader = torch.utils.data.DataLoader(
            source,
            batch_sampler=[c.tolist() for c in chunks],
            num_workers=workers,
            collate_fn=_collate,
            # A data set holds functions of its own, and only a fork hands those on. From 3.14
            # Python has to be told.
            multiprocessing_context="fork" if workers else None,
        )
        mix = Mix(self.mixup, self.cutmix, len(self.classes)) if self._mixes and train else None
        return Loader(loader, len(chunks), self.dataset, mix, _mix(self.seed, epoch, rank))

    def sample(self, batch_size: int, batches: int) -> Loader:
        """Up to `batches` of training images as in evaluation, drawn by the seed: the first ones
        of a folder would be of one class."""
        train = np.random.default_rng(self.seed).permutation(self.dataset.splits["train"])
        splits = {**self.dataset.splits, "train": train[: batch_size * batches]}
        return replace(self, dataset=replace(self.dataset, splits=splits)).loader(
            "train", batch_size
        )

    @property
    def _mixes(self) -> bool:
        return bool(self.mixup or self.cutmix)

    def _order(self, indices: npt.NDArray[Any], epoch: int) -> Any:
        """The images of an epoch, shuffled. One that comes a second time has the number of images
        added to its own, so that it is augmented anew."""
        generator = torch.Generator().manual_seed(_mix(self.seed, epoch))
        order = indices[torch.randperm(len(indices), generator=generator).numpy()]
        if not self.balanced:
            return order
        labels, count = self.dataset.targets, len(self.dataset.targets)
        shares = []
        for number in range(len(self.classes)):
            members = order[labels[order] == number]
            # The remainder goes to the first classes of this epoch's own order.
            place = (number + epoch) % len(self.classes)
            wanted = len(order) // len(self.classes) + (place < len(order) % len(self.classes))
            turn = np.arange(wanted)
            shares.append(members[turn % len(members)] + count * (turn // len(members)))
        chosen = np.concatenate(shares)
        return chosen[torch.randperm(len(chosen), generator=generator).numpy()]

    def _augmentation(self) -> _Augmentation | None:
        given = self.augment, self.largest, self.erase, self.preprocess.mean
        if self.dataset.mask is not None:
            return image_and_mask_transform(*given)
        alone = image_transform(*given)
        return None if alone is None else lambda image, mask: (alone(image), mask)

    @property
    def largest(self) -> tuple[int, int]:
        """Height and width that hold every network's input."""
        sizes = [preprocess.size for preprocess in (self.preprocess, *self.views)]
        return max(h for h, _ in sizes), max(w for _, w in sizes)


def spread(indices: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Up to `count` of `indices`, evenly over them."""
    places = np.linspace(0, len(indices) - 1, min(count, len(indices))).astype(np.int64)
    return np.take(indices, places)


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
    """Iterates batches; an image that cannot be read raises its own error, also from a worker, or
    is noted in `Dataset.bad_images` where such images are skipped."""

    def __init__(
        self, loader: Any, length: int, dataset: Dataset, mix: Mix | None = None, seed: int = 0
    ) -> None:
        self._loader, self._length, self._dataset = loader, length, dataset
        self._mix, self._seed = mix, seed

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        for number, found in enumerate(self._loader):
            if isinstance(found, UserError):
                raise found
            batch, bad = found
            self._dataset.bad_images.update(bad)
            if batch is None:
                continue
            if self._mix is not None:
                with seeded(_mix(self._seed, number)):
                    batch = (*self._mix(*batch[:2]), *batch[2:])
            yield batch


class _Images(torch.utils.data.Dataset[Any]):
    def __init__(
        self, data: Data, epoch: int, augmentation: _Augmentation | None,
        samples: bool = False, instead: npt.NDArray[np.int64] | None = None,
    ) -> None:  # fmt: skip
        self.data, self.epoch, self.augmentation = data, epoch, augmentation
        self.samples = samples
        self.instead = instead
        """Where another image is taken from for one that cannot be read."""
        others = data.views if samples and data.yields_views else ()
        self.preprocesses = (data.preprocess, *others)
        masks = data.dataset.mask is not None
        if augmentation is not None and crops(data.augment, data.largest, masks):
            # The crop was drawn already: another one would lose its border.
            self.preprocesses = tuple(replace(p, resize=None) for p in self.preprocesses)

    def __getitem__(self, key: int) -> tuple[Any, dict[int, str]] | UserError:
        """The item, or None, with the images that could not be read."""
        again, index = divmod(key, len(self.data.dataset.targets))
        bad: dict[int, str] = {}
        turn = _mix(self.data.seed, self.epoch, key)
        while True:
            try:
                return self._item(index, again), bad
            except UserError as error:
                if self.data.dataset.on_bad_image == "fail":
                    return error
                bad[index] = str(error)
            if self.instead is None:
                return None, bad
            if len(bad) == min(_MOST_BAD_IN_A_ROW, len(self.instead)):
                return UserError(
                    f"{len(bad)} images in a row cannot be read, the last one: {bad[index]}"
                )
            index = int(self.instead[turn % len(self.instead)])
            turn += 1

    def _item(self, index: int, again: int) -> tuple[Any, ...]:
        dataset = self.data.dataset
        image, mask = dataset.image(index), None if dataset.mask is None else dataset.mask(index)
        if self.augmentation is not None:
            image, mask = self._augmented(image, mask, index, again)
        values, *others = (torch.from_numpy(apply(p, image)) for p in self.preprocesses)
        row = dataset.targets[index] if mask is None else apply_to_mask(self.preprocesses[0], mask)
        target = torch.as_tensor(np.array(row))
        return (values, target, (index, self.epoch, others)) if self.samples else (values, target)

    def _augmented(
        self, image: Image.Image, mask: Any, index: int, again: int = 0
    ) -> tuple[Image.Image, Any]:
        colours = {p.channels for p in (self.data.preprocess, *self.data.views)}
        image = to_mode(image, max(colours, key=len))  # RGBA, RGB, L
        with seeded(_mix(self.data.seed, self.epoch, index, *([again] if again else []))):
            return self.augmentation(image, mask)  # type: ignore[misc]


def _collate(found: list[Any]) -> tuple[Any, dict[int, str]] | UserError:
    bad: dict[int, str] = {}
    items = []
    for one in found:
        if isinstance(one, UserError):
            return one
        if one[0] is not None:
            items.append(one[0])
        bad |= one[1]
    if not items:
        return None, bad
    images, targets, *more = zip(*items, strict=True)
    batch = torch.stack(images), torch.stack(targets)
    if not more:
        return batch, bad
    indices, views, others = zip(*more[0], strict=True)
    stacked = tuple(torch.stack(images) for images in zip(*others, strict=True))
    return (*batch, Samples(torch.tensor(indices), views[0], stacked)), bad


def _mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
