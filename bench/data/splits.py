"""Which image belongs to which split: fixed by the seed, stratified, no image in two of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UserError
from .duplicates import repeated_across

SPLITS = ("train", "val", "test")
TEST_SHARE, VAL_SHARE = 0.2, 0.1
PATH = "utf-8", "surrogateescape"  # a file name may hold any bytes


def split_by_seed(
    keys: Sequence[str], labels: npt.NDArray[np.int64], classes: Sequence[str], seed: int,
    test: float = TEST_SHARE, val: float = VAL_SHARE,
) -> dict[str, npt.NDArray[np.int64]]:  # fmt: skip
    """Stratified splits. Each class is ordered by the hash of seed and key: the same on every
    machine and version, and an added image moves no other one but at the borders."""
    parts: dict[str, list[int]] = {name: [] for name in SPLITS}
    needed = 1 + (test > 0) + (val > 0)
    for number, name in enumerate(classes):
        members = np.flatnonzero(labels == number).tolist()
        if len(members) < needed:
            raise UserError(
                f"class {name!r} has {len(members)} images; a split needs at least {needed}. "
                f"Add images or remove the class."
            )
        members.sort(key=lambda i: hashlib.sha256(f"{seed}/{keys[i]}".encode(*PATH)).digest())
        tests = max(1, round(test * len(members))) if test else 0
        vals = max(1, round(val * len(members))) if val else 0
        parts["test"] += members[:tests]
        parts["val"] += members[tests : tests + vals]
        parts["train"] += members[tests + vals :]
    return {name: np.array(sorted(part), dtype=np.int64) for name, part in parts.items()}


def drawn_by_seed(
    keys: Sequence[str], labels: npt.NDArray[np.int64], classes: Sequence[str], seed: int,
    paths: Sequence[Path], sizes: Sequence[int],
) -> tuple[dict[str, npt.NDArray[np.int64]], str]:  # fmt: skip
    """`split_by_seed` with every copy of an image in `train`, and an empty text.

    Where there are too few images to divide, all are in `test`: they can be measured on. The text
    says then why nobody can train on them.
    """
    try:
        splits = split_by_seed(keys, labels, classes, seed)
        return without_overlap(splits, paths, sizes, np.zeros(len(keys)), (".",)), ""
    except UserError as error:
        none = np.zeros(0, np.int64)
        return {"train": none, "val": none, "test": np.arange(len(keys))}, str(error)


def val_from_train(
    keys: Sequence[str], labels: npt.NDArray[np.int64], classes: Sequence[str], seed: int,
    where: npt.NDArray[Any],
) -> dict[str, npt.NDArray[np.int64]]:  # fmt: skip
    train = np.flatnonzero(where == 0)
    inner = split_by_seed([keys[int(i)] for i in train], labels[train], classes, seed, test=0)
    return {
        "train": train[inner["train"]],
        "val": train[inner["val"]],
        "test": np.flatnonzero(where == 1),
    }


def without_overlap(
    splits: dict[str, npt.NDArray[np.int64]], paths: Sequence[Path], sizes: Sequence[int],
    where: npt.NDArray[Any], given: Sequence[str],
) -> dict[str, npt.NDArray[np.int64]]:  # fmt: skip
    """No image may be trained on and measured on. Copies that the seed has spread over the splits
    all go to `train`; copies in folders that the user has divided are refused."""
    part = np.zeros(len(paths), dtype=np.int64)
    for number, name in enumerate(SPLITS):
        part[splits[name]] = number
    groups = repeated_across(paths, sizes, part.tolist())
    if not groups:
        return splits
    for group in groups:
        one, other = group[0], next((i for i in group if where[i] != where[group[0]]), None)
        if other is not None:
            raise UserError(
                f"{paths[one]} and {paths[other]} hold the same bytes: {given[where[one]]}/ and "
                f"{given[where[other]]}/ overlap, so accuracy would be measured on images that "
                f"were trained on. Remove the copies ({len(groups):,} images are there twice)."
            )
    part[[i for group in groups for i in group]] = 0
    found = {name: np.flatnonzero(part == number) for number, name in enumerate(SPLITS)}
    for name in SPLITS:
        if not len(found[name]):
            first, copy = (paths[i] for i in groups[0][:2])
            raise UserError(
                f"Nothing is left for {name}: {len(groups):,} images are there more than once, "
                f"such as {first} and {copy}. Remove the copies."
            )
    return found


def fingerprint(digest: Any, splits: Mapping[str, npt.NDArray[np.int64]]) -> str:
    """A data set's fingerprint, from the hash over its images and targets."""
    for name in SPLITS:
        digest.update(name.encode() + splits[name].astype("<i8").tobytes())
    return str(digest.hexdigest())
