"""Scenes composed of the embedded digits, with exact masks, boxes and labels.

Several digits of different colours and sizes lie over each other on a textured ground. The digits
are divided first, so none is in scenes of two splits. A scene is drawn when it is asked for, from
the seed and its number: nothing is on disk, and only the digits are in memory.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..bundle import Preprocess
from .dataset import Dataset
from .sources import DIGITS, digits
from .splits import SPLITS, fingerprint

SIDE = 128
"""Height and width of a scene, pixels."""
COUNTS = {"train": 2000, "val": 200, "test": 400}
"""Scenes in each split."""
BACKGROUND = "background"
MOST = 6
"""Most digits in a scene; one that would hide too much of another is left out."""
_SIZES = 30, 72
"""Sides of the square that a digit is enlarged to, pixels."""
_LEAST_VISIBLE = 0.6
"""Share of a digit that those above it leave visible."""
_CONTRAST = 70
"""Least difference in brightness of a digit and the middle of the ground, of 255."""
_EDGE = [min(255, max(0, 4 * (value - 96))) for value in range(256)]
"""How much of a digit's colour a pixel takes: all inside, none outside, a part at the edge."""


@dataclass(frozen=True)
class Scene:
    """A picture, and what stands in it."""

    pixels: NDArray[np.uint8]
    """`[H, W, 3]`."""
    instances: NDArray[np.uint8]
    """`[H, W]`: number of the instance that is visible there, from 1; 0 is the ground."""
    labels: NDArray[np.int64]
    """`[M]`: the digit that each instance is, 0 to 9; the later ones lie above."""

    @property
    def mask(self) -> NDArray[np.uint8]:
        """`[H, W]`: 0 on the ground, else 1 + the digit."""
        classes = np.concatenate([[0], self.labels + 1]).astype(np.uint8)
        found: NDArray[np.uint8] = classes[self.instances]
        return found

    @property
    def masks(self) -> NDArray[np.bool_]:
        """`[M, H, W]`: the visible pixels of each instance."""
        found: NDArray[np.bool_] = (
            self.instances == np.arange(1, len(self.labels) + 1)[:, None, None]
        )
        return found

    @property
    def boxes(self) -> NDArray[np.float32]:
        """`[M, 4]`: left, top, right, bottom of each instance's visible pixels; right and bottom
        are the first column and row behind them."""
        rows = [(columns, lines) for columns, lines in ((m.any(0), m.any(1)) for m in self.masks)]
        ends = [
            (x.argmax(), y.argmax(), len(x) - x[::-1].argmax(), len(y) - y[::-1].argmax())
            for x, y in rows
        ]
        return np.array(ends, np.float32).reshape(-1, 4)


@dataclass(frozen=True)
class Scenes:
    """All scenes of a seed, each drawn when it is asked for."""

    seed: int
    pixels: NDArray[np.uint8]
    """`[1797, 8, 8]`: the digits."""
    labels: NDArray[np.int64]
    parts: dict[str, NDArray[np.int64]]
    """Which digits each split has."""

    def __len__(self) -> int:
        return sum(COUNTS.values())

    @property
    def splits(self) -> dict[str, NDArray[np.int64]]:
        """The numbers of the scenes in each split."""
        ends = np.cumsum([COUNTS[name] for name in SPLITS])
        numbers = np.split(np.arange(len(self)), ends[:-1])
        return dict(zip(SPLITS, numbers, strict=True))

    def scene(self, i: int) -> Scene:
        """Scene number i: the same for the same seed, on every machine."""
        rng = np.random.default_rng([self.seed, i])
        split = SPLITS[int(np.searchsorted(np.cumsum([COUNTS[s] for s in SPLITS]), i, "right"))]
        ground, middle = _ground(rng)
        picture = Image.fromarray(ground)
        instances = np.zeros((SIDE, SIDE), np.uint8)
        labels: list[int] = []
        for _ in range(int(rng.integers(2, MOST + 1))):
            number = int(rng.choice(self.parts[split]))
            side = int(rng.integers(_SIZES[0], _SIZES[1] + 1))
            left, top = (int(x) for x in rng.integers(0, SIDE - side + 1, 2))
            colour = _colour(rng, middle)
            shape = Image.fromarray(self.pixels[number]).resize(
                (side, side), Image.Resampling.BILINEAR
            )
            here = np.zeros((SIDE, SIDE), bool)
            here[top : top + side, left : left + side] = np.asarray(shape) >= 128
            if not _leaves_enough(instances, here):
                continue
            labels.append(int(self.labels[number]))
            instances[here] = len(labels)
            picture.paste(colour, (left, top), shape.point(_EDGE))
        return Scene(np.asarray(picture), instances, np.array(labels, np.int64))


def open_scenes(seed: int) -> Scenes:
    """The scenes of a seed."""
    return Scenes(seed, *digits(seed))


def segmentation_scenes(seed: int) -> Dataset:
    """The scenes with a mask each: the ground, and a class for each digit."""
    scenes = open_scenes(seed)
    drawn = lru_cache(maxsize=4)(scenes.scene)  # a picture and its mask are asked for in turn
    return Dataset(
        "scenes", (BACKGROUND, *DIGITS), np.zeros((len(scenes), 0), np.int64), scenes.splits,
        scenes_fingerprint(scenes), lambda i: Image.fromarray(drawn(i).pixels),
        Preprocess(size=(SIDE, SIDE)), seed=seed, mask=lambda i: Image.fromarray(drawn(i).mask),
    )  # fmt: skip


def scenes_fingerprint(scenes: Scenes) -> str:
    """A hash over the digits, the seed, the splits, and two scenes of each split."""
    digest = hashlib.sha256(f"{scenes.seed}\0".encode() + scenes.pixels.tobytes())
    splits = scenes.splits
    for numbers in splits.values():
        for i in (numbers[0], numbers[-1]):
            scene = scenes.scene(int(i))
            digest.update(scene.pixels.tobytes() + scene.mask.tobytes())
    return fingerprint(digest, splits)


def _ground(rng: np.random.Generator) -> tuple[NDArray[np.uint8], int]:
    """Noise of three grain sizes in a colour of its own, `[H, W, 3]`, and its mean brightness.

    Whole numbers alone: the same pixels on every machine.
    """
    colour = rng.integers(30, 226, 3)
    found = np.broadcast_to(colour, (SIDE, SIDE, 3)).astype(np.int64)
    for cells, strength in ((4, 24), (16, 16), (64, 12)):
        coarse = rng.integers(0, 256, (cells, cells, 3)).astype(np.uint8)
        fine = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        found = found + (np.asarray(fine, np.int64) - 128) * strength // 128
    return found.clip(0, 255).astype(np.uint8), int(colour.sum()) // 3


def _colour(rng: np.random.Generator, middle: int) -> tuple[int, int, int]:
    """A colour that stands out from a ground of this brightness."""
    while True:
        red, green, blue = (int(x) for x in rng.integers(0, 256, 3))
        if abs((red + green + blue) // 3 - middle) >= _CONTRAST:
            return red, green, blue


def _leaves_enough(instances: NDArray[np.uint8], here: NDArray[np.bool_]) -> bool:
    """Whether a digit put there would leave enough of each one below it visible."""
    before = np.bincount(instances.ravel(), minlength=MOST + 1)[1:]
    hidden = np.bincount(instances[here], minlength=MOST + 1)[1:]
    return bool((hidden <= (1 - _LEAST_VISIBLE) * before).all())
