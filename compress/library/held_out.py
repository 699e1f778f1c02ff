"""What `save(data=...)` takes: a name as `--data` has it, or pairs that the user holds in code."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vcompress.bench.bundle import InputSpec, Preprocess
from vcompress.bench.data.dataset import Dataset
from vcompress.bench.data.own import SAMPLE
from vcompress.bench.data.own_targets import Names, as_mask, listed, plain_target
from vcompress.bench.data.preprocess import apply
from vcompress.bench.data.splits import SPLITS
from vcompress.bench.errors import UserError
from vcompress.bench.tasks import load, open_dataset

from .loaders import pair

Held = str | PathLike[str] | Dataset | Iterable[Any]


PAIRS = "the pairs"


@dataclass(frozen=True)
class Pairs(Dataset):
    """Pairs in code, all held out. Nothing could open them again, so no bundle names them."""

    items: Sequence[Any] = ()

    def values(self, i: int, preprocess: Preprocess) -> NDArray[np.float32] | None:
        """Image number i: prepared here, or a tensor as the user has prepared it."""
        image, _ = pair(self.items[i])
        if isinstance(image, Image.Image):
            return apply(preprocess, image)
        shape = InputSpec.of(preprocess).shape
        if not isinstance(image, Tensor) or not image.is_floating_point() or image.shape != shape:
            raise UserError(
                f"data: item {i} is {_said(image)}; expected a Pillow image, or a tensor of floats "
                f"{list(shape)} as the network takes it, with its target."
            )
        return image.detach().cpu().float().numpy()

    def both(
        self, i: int, preprocess: Preprocess
    ) -> tuple[NDArray[np.float32], NDArray[Any]] | None:
        """Image number i with its target; a mask beside a tensor is at the network's size."""
        image, _ = pair(self.items[i])
        if self.mask is None or isinstance(image, Image.Image):
            return super().both(i, preprocess)
        mask = np.asarray(self.mask(i))
        if mask.shape != preprocess.size:
            raise UserError(
                f"data: the mask of item {i} is {list(mask.shape)}; expected "
                f"{list(preprocess.size)}, as its image is prepared."
            )
        values = self.values(i, preprocess)
        return None if values is None else (values, mask)

    def record(self) -> None:
        """Nothing."""


def named_data(data: Held | None, task: str, root: str | None, seed: int) -> Dataset | None:
    """Data by their name: `digits`, a folder, `torchvision:NAME` with `root`; None of others.

    Raises:
        UserError: there are no such data.
    """
    if isinstance(data, (str, PathLike)):
        return open_dataset(str(data), root, seed, task=task)
    return data if isinstance(data, Dataset) else None


def data_in_code(data: Held, task: str, labels: Sequence[str], preprocess: Preprocess) -> Dataset:
    """Images with targets that are held out as a whole.

    Args:
        data: a `torch.utils.data.Dataset`, a sequence of pairs, or a loader of batches of them.
        labels: names of the network's outputs.

    Raises:
        UserError: nothing in it, other items than pairs, targets that do not fit.
    """
    items = _items(data)
    if load(task).maps:
        return _with_masks(items, task, tuple(labels), preprocess)
    read = load(task).read_targets
    found = listed(items)
    if found is None or len(found) != len(items):
        found = [_target(items, number) for number in range(len(items))]
        names, targets = read({PAIRS: found}, tuple(labels), "data")
    else:  # no image is decoded for its target; of some it is looked at
        seen = np.linspace(0, len(items) - 1, min(len(items), SAMPLE)).astype(int).tolist()
        names, targets = read({PAIRS: list(map(plain_target, found))}, tuple(labels), "data")
        _, again = read({PAIRS: [_target(items, number) for number in seen]}, names, "data")
        if not np.allclose(targets[seen], again, rtol=1e-5, atol=1e-8):
            raise UserError(
                "data: the attribute `targets` says something else than the items. Make them "
                "agree, or remove the attribute."
            )
    everything = np.arange(len(items), dtype=np.int64)
    return Pairs(
        "data in code", names, targets, dict.fromkeys(SPLITS, everything),
        hashlib.sha256(targets.tobytes()).hexdigest(), lambda i: _picture(items, i),
        preprocess, task=task, items=items,
    )  # fmt: skip


def _with_masks(items: Any, task: str, labels: Names, preprocess: Preprocess) -> Pairs:
    """Pairs of an image and a mask. Each mask is read and checked, and asked for again later."""

    def mask(i: int) -> NDArray[np.uint8]:
        return as_mask(_given(items, i), labels, f"data: the mask of item {i}")

    digest = hashlib.sha256()
    for i in range(len(items)):
        digest.update(mask(i).tobytes())
    everything = np.arange(len(items), dtype=np.int64)
    return Pairs(
        "data in code", labels, np.zeros((len(items), 0), np.int64),
        dict.fromkeys(SPLITS, everything), digest.hexdigest(), lambda i: _picture(items, i),
        preprocess, task=task, mask=lambda i: Image.fromarray(mask(i)), items=items,
    )  # fmt: skip


def _target(items: Any, number: int) -> Any:
    return plain_target(_given(items, number))


def _given(items: Any, number: int) -> Any:
    target = pair(items[number])[1]
    if target is None:
        raise UserError(
            f"data: item {number} has no target; expected pairs of an image and its target."
        )
    return target


def _items(data: Any) -> Any:
    """Something with a length and items: a data set as it is, batches taken apart."""
    if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise UserError(
            f"data: got a {type(data).__name__}; expected a name as --data takes it, a "
            "torch.utils.data.Dataset, or a sequence of pairs of an image and its target."
        )
    held = data if hasattr(data, "__len__") and hasattr(data, "__getitem__") else list(data)
    if not len(held):
        raise UserError("data: it holds nothing; expected pairs of an image and its target.")
    image, _ = pair(held[0])
    return list(_apart(held)) if isinstance(image, Tensor) and image.ndim == 4 else held


def _apart(batches: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """The pairs of a loader's batches."""
    for batch in batches:
        images, targets = pair(batch)
        if targets is None:
            raise UserError("data: the batches have no targets; expected images with targets.")
        yield from zip(images, targets, strict=True)


def _picture(items: Any, i: int) -> Image.Image:
    image, _ = pair(items[i])
    if not isinstance(image, Image.Image):
        raise UserError(f"data: item {i} is {_said(image)} and no picture any more.")
    return image


def _said(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return f"a {type(value).__name__}"
