"""Pictures composed of the embedded digits, for tasks that need more than one in a picture.

The digits are divided first, so none is in pictures of two splits. The seed draws everything, and
nothing is on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..bundle import Preprocess
from .dataset import Dataset
from .sources import DIGITS, digits
from .splits import fingerprint

SIDE = 32
"""Height and width of a picture, pixels."""
_PREPROCESS = Preprocess(size=(SIDE, SIDE), mean=(0.15,) * 3, std=(0.3,) * 3)


def several_digits(seed: int) -> Dataset:
    """Pictures of one to four digits, each in a quarter of its own; the target says which digits
    stand there, `[N, 10] int8`."""

    def draw(rng: np.random.Generator, take: Callable[[], int]) -> tuple[list[_Placed], list[int]]:
        quarters = rng.permutation(4)[: rng.integers(1, 5)]
        placed = [
            (take(), 16 * (int(q) % 2) + int(rng.integers(0, 4)),
             16 * (int(q) // 2) + int(rng.integers(0, 4)), 12)
            for q in quarters
        ]  # fmt: skip
        return placed, [number for number, *_ in placed]

    def target(labels: list[int]) -> NDArray[np.int8]:
        return np.isin(np.arange(10), labels).astype(np.int8)

    return _compose(seed, draw, target, DIGITS)


def two_digits(seed: int) -> Dataset:
    """Pictures of two digits side by side; the target is the number that they form, `[N, 1]
    float32`, 0 to 99."""

    def draw(rng: np.random.Generator, take: Callable[[], int]) -> tuple[list[_Placed], list[int]]:
        placed = [
            (take(), 16 * place + int(rng.integers(0, 3)), 8 + int(rng.integers(-4, 5)), 14)
            for place in (0, 1)
        ]
        return placed, [number for number, *_ in placed]

    def target(labels: list[int]) -> NDArray[np.float32]:
        return np.array([10 * labels[0] + labels[1]], np.float32)

    return _compose(seed, draw, target, ("number",))


_Placed = tuple[int, int, int, int]
"""Which digit, left, top and side of its square, pixels."""


def _compose(
    seed: int,
    draw: Callable[[np.random.Generator, Callable[[], int]], tuple[list[_Placed], list[int]]],
    target: Callable[[list[int]], NDArray[np.generic]],
    names: tuple[str, ...],
) -> Dataset:
    """As many pictures in each split as it has digits."""
    pixels, labels, parts = digits(seed)
    pictures: list[NDArray[np.uint8]] = []
    targets: list[NDArray[np.generic]] = []
    splits: dict[str, NDArray[np.int64]] = {}
    for number, (name, members) in enumerate(parts.items()):
        rng = np.random.default_rng([seed, number])
        start = len(pictures)
        for _ in members:
            placed, chosen = draw(rng, lambda: int(rng.choice(members)))  # noqa: B023
            pictures.append(_paste(pixels, placed))
            targets.append(target([int(labels[i]) for i in chosen]))
        splits[name] = np.arange(start, len(pictures))
    stacked = np.stack(pictures)
    rows = np.stack(targets)
    digest = hashlib.sha256(stacked.tobytes() + rows.tobytes())
    return Dataset(
        "digits", names, rows, splits, fingerprint(digest, splits),
        lambda i: Image.fromarray(stacked[i]), _PREPROCESS, seed=seed,
    )  # fmt: skip


def _paste(pixels: NDArray[np.uint8], placed: list[_Placed]) -> NDArray[np.uint8]:
    canvas = Image.new("L", (SIDE, SIDE))
    for number, left, top, side in placed:
        digit = Image.fromarray(pixels[number])
        canvas.paste(digit.resize((side, side), Image.Resampling.BILINEAR), (left, top))
    return np.asarray(canvas)
