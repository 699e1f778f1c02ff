"""Which image belongs to which split: fixed by the seed, stratified, no image in two of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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
