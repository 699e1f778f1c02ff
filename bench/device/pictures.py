"""What a network found in an image, as pictures: a mask with a palette, and one over the image."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.dataset import IGNORED

GROUND = "background"
"""The class of this name is black, and leaves the image as it is."""
UNSEEN = (255, 255, 255)
"""The colour of `IGNORED`."""
_GOLDEN = 0.618033988749895


def colours(names: Sequence[str]) -> NDArray[np.uint8]:
    """A colour for each of 256 values, `[256, 3]`: those of neighbouring classes lie far apart."""
    found = np.zeros((256, 3), np.uint8)
    for k, name in enumerate(names):
        if name.casefold() != GROUND:
            # Hues by the golden ratio, each round a little lighter or paler.
            hue, turn = k * _GOLDEN % 1, k // 8 % 3
            parts = colorsys.hsv_to_rgb(hue, (0.85, 0.5, 0.95)[turn], (0.95, 1.0, 0.6)[turn])
            found[k] = [round(255 * part) for part in parts]
    found[IGNORED] = UNSEEN
    return found


def mask_picture(mask: NDArray[np.uint8], names: Sequence[str]) -> Image.Image:
    """A picture of mode `P`: its values are the numbers of the classes, its palette `colours`."""
    found = Image.fromarray(mask)
    found.putpalette(colours(names).tobytes())
    return found


def overlay(image: Image.Image, mask: NDArray[np.uint8], names: Sequence[str]) -> Image.Image:
    """The image, RGB, half covered by the colours of the classes `[H, W]`, with their edges."""
    pixels = np.asarray(image.convert("RGB"))
    table = colours(names)
    covered: NDArray[np.bool_] = np.asarray(table.any(1))
    covered[IGNORED] = False
    both = (pixels.astype(np.uint16) + table[mask]) // 2
    found = np.where(covered[mask][..., None], both, pixels).astype(np.uint8)
    edge = np.zeros(mask.shape, np.bool_)
    np.not_equal(mask[:, 1:], mask[:, :-1], out=edge[:, 1:])
    edge[1:][mask[1:] != mask[:-1]] = True
    found[edge] = table[mask][edge]
    return Image.fromarray(found)
