"""Images with a mask each: folders of both, or COCO's JSON; see `mask_folders`, `mask_values`,
`coco`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UserError, nearest
from . import coco, mask_folders, mask_values
from .dataset import IGNORED, Dataset
from .folders import said
from .mask_folders import Pair
from .mask_values import Values
from .preprocess import read_image, size_of, whole_preprocess
from .sources import is_there
from .splits import PATH, SPLITS, drawn_by_seed, fingerprint, val_from_train, without_overlap

SAMPLE = 16
"""Masks whose values are looked at when the data are opened and a table names the classes."""
_SEEN_PIXELS = 2**27
"""Pixels that are looked at where no table names the classes."""
VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
CITYSCAPES = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17,
    "traffic light": 19, "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23,
    "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32,
    "bicycle": 33,
}  # fmt: skip
"""The classes that Cityscapes scores, with their numbers in `labelIds`; the others of its 34 are
ignored."""


def open_masks(source: str, seed: int) -> Dataset:
    """Images and masks of a folder, or of COCO's JSON. Targets are `[N, 0]`.

    Sizes are read from the headers of all files; the values of a sample of masks are looked at, and
    those of every mask when it is read.

    Raises:
        UserError: files that do not belong together, sizes that differ, values that are no class.
    """
    root = Path(source)
    if not is_there(root) or not (root.is_dir() or root.suffix == ".json"):
        raise UserError(
            f"--data {source!r:.200}: no such folder. Expected scenes, or a folder with images/ "
            f"and masks/, or COCO's JSON.{nearest(source, ['scenes'])}"
        )
    if files := coco.annotation_files(root):
        return _of_annotations(root, coco.read_all(root, files), seed)
    pairs, left_out = mask_folders.find_pairs(root)
    _check_sizes(pairs)
    values = _values(root, [pair.mask for pair in pairs])
    images, masks = [pair.image for pair in pairs], [pair.mask for pair in pairs]
    sizes = [path.stat().st_size for path in images]
    keys = [path.relative_to(root).as_posix() for path in images]
    splits, undivided = divided([pair.split for pair in pairs], keys, images, sizes, seed, root)
    digest = hashlib.sha256(values.digest.encode())
    for key, size, mask in zip(keys, sizes, masks, strict=True):
        named = f"{key}\0{size}\0{mask.relative_to(root).as_posix()}\0{mask.stat().st_size}\n"
        digest.update(named.encode(*PATH))

    return Dataset(
        str(root), values.names, np.zeros((len(pairs), 0), np.int64), splits,
        fingerprint(digest, splits), lambda i: read_image(images[i]),
        whole_preprocess(size_of(images[0])), seed=seed,
        drawn=not any(pair.split for pair in pairs), undivided=undivided,
        left_out=said(left_out, f"{root}: left out: "),
        mask=lambda i: Image.fromarray(values.read(masks[i])),
    )  # fmt: skip


def _of_annotations(root: Path, found: coco.Annotations, seed: int) -> Dataset:
    paths = [one.image for one in found.images]
    sizes = [path.stat().st_size for path in paths]
    base = root if root.is_dir() else root.parent
    keys = [Path(os.path.relpath(path, base)).as_posix() for path in paths]
    given = [one.split for one in found.images]
    splits, undivided = divided(given, keys, paths, sizes, seed, root)
    digest = hashlib.sha256(repr((found.names, found.sha256)).encode())
    for key, size in zip(keys, sizes, strict=True):
        digest.update(f"{key}\0{size}\n".encode(*PATH))
    return Dataset(
        str(root), found.names, np.zeros((len(paths), 0), np.int64), splits,
        fingerprint(digest, splits), lambda i: read_image(paths[i]),
        whole_preprocess(size_of(paths[0])), seed=seed, drawn=not any(given), undivided=undivided,
        left_out=said(found.left_out, f"{root}: left out: "),
        mask=lambda i: Image.fromarray(found.mask(i)),
    )  # fmt: skip


def divided(
    given: Sequence[str], keys: Sequence[str], paths: Sequence[Path], sizes: Sequence[int],
    seed: int, root: Path,
) -> tuple[dict[str, NDArray[np.int64]], str]:  # fmt: skip
    """The splits of images whose owner has divided them, or not; and why they could not be.

    Where only one of val and test is there, it is measured on, and val is drawn from train.

    Args:
        given: train, val or test of each image; all empty where nobody has divided them.
    """
    alike = np.zeros(len(keys), np.int64)
    names = [name for name in SPLITS if name in given]
    if not names:
        return drawn_by_seed(keys, alike, ("all",), seed, paths, sizes)
    if names == ["train"]:
        raise UserError(
            f"{root}: found images of train alone, and nothing to measure on. Add val/ or test/ "
            f"with masks."
        )
    roles = ["test" if name == names[-1] else name for name in names]
    where = np.array([names.index(name) for name in given])
    if roles == ["train", "test"]:
        splits = val_from_train(keys, alike, ("all",), seed, where)
    else:
        splits = {
            name: np.flatnonzero(where == (roles.index(name) if name in roles else -1))
            for name in SPLITS
        }
    return without_overlap(splits, paths, sizes, where, names), ""


def _check_sizes(pairs: Sequence[Pair]) -> None:
    """Raise a UserError where a mask has another size than its image."""
    read = ((pair, size_of(pair.image), size_of(pair.mask)) for pair in pairs)
    if unlike := [one for one in read if one[1] != one[2]]:
        pair, image, mask = unlike[0]
        raise UserError(
            f"{pair.mask}: {mask[0]}x{mask[1]} pixels, and its image {pair.image} "
            f"{image[0]}x{image[1]} ({len(unlike):,} of {len(pairs):,} pairs differ). Resize the "
            f"masks to their images, to the nearest pixel."
        )


def _values(root: Path, masks: Sequence[Path]) -> Values:
    """What the values of the masks mean: by a table, by the layout, else as they show."""
    table = mask_values.table(root)
    known = mask_values.read_table(table) if table else _by_layout(root, masks)
    order = np.linspace(0, len(masks) - 1, min(len(masks), SAMPLE)).astype(int).tolist()
    if known is not None:
        for i in order:
            known.read(masks[i])
        return known
    seen, pixels = [], 0
    # Evenly over all of them, so that a part is a fair one.
    for i in np.argsort(np.arange(len(masks)) * 0.6180339887 % 1, kind="stable").tolist():
        if pixels > _SEEN_PIXELS:
            break
        values = mask_values.stored(masks[i])
        pixels += values.size
        seen.append((masks[i], np.unique(values) if values.dtype != np.uint32 else values))
    return mask_values.inferred(seen, whole=len(seen) == len(masks))


def _by_layout(root: Path, masks: Sequence[Path]) -> Values | None:
    """The classes of PASCAL VOC and of Cityscapes, whose folders hold no table of them."""
    if (root / "SegmentationClass").is_dir() and (root / "JPEGImages").is_dir():
        numbers = {**{k: k for k in range(len(VOC))}, IGNORED: IGNORED}
        return Values(VOC, numbers, source="the folders are PASCAL VOC's, with 21 classes")
    if all(path.stem.endswith("_gtFine_labelIds") for path in masks):
        numbers = dict.fromkeys((*range(34), IGNORED), IGNORED)
        numbers |= {number: k for k, number in enumerate(CITYSCAPES.values())}
        return Values(tuple(CITYSCAPES), numbers, source="the files are Cityscapes' labelIds")
    if all(path.stem.endswith("_gtFine_labelTrainIds") for path in masks):
        numbers = {**{k: k for k in range(len(CITYSCAPES))}, IGNORED: IGNORED}
        return Values(tuple(CITYSCAPES), numbers, source="the files are Cityscapes' labelTrainIds")
    return None
