"""COCO's ways to write the shape of an object: run lengths, and polygons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError

_FINE = 5
"""Positions of a polygon's edge in a pixel: those of COCO's own rasteriser."""


def shape(segmentation: Any, size: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """The pixels of an object, `[H, W]`.

    Args:
        segmentation: a list of polygons `[x, y, x, y, ...]`, or a mapping with `counts` (a list of
            run lengths, or COCO's text of them) and `size`.
        size: height and width of the image.

    Raises:
        UserError: anything else, or run lengths of another size.
    """
    if isinstance(segmentation, Mapping):
        return _runs(segmentation, size, where)
    if isinstance(segmentation, list) and segmentation and isinstance(segmentation[0], list):
        found = np.zeros(size, np.bool_)
        for polygon in segmentation:
            if len(polygon) < 6 or len(polygon) % 2 or not all(map(_is_number, polygon)):
                raise UserError(
                    f"{where}: a polygon of {len(polygon)} values; expected x and y of at least "
                    f"three corners."
                )
            found |= polygon_pixels(np.array(polygon, np.float64).reshape(-1, 2), size)
        return found
    raise UserError(f"{where}: the segmentation is {segmentation!r:.60}; expected polygons or RLE.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6


def _runs(segmentation: Mapping[str, Any], size: tuple[int, int], where: str) -> NDArray[np.bool_]:
    given = segmentation.get("counts")
    counts: Any = run_lengths(given) if isinstance(given, str) else given
    good = isinstance(counts, list) and all(isinstance(x, int) and x >= 0 for x in counts)
    if not good or sum(counts) != size[0] * size[1]:
        raise UserError(
            f"{where}: run lengths of {sum(counts) if good else 'no'} pixels; the image has "
            f"{size[0] * size[1]}. Expected a list of whole numbers, or COCO's text."
        )
    bits = np.arange(len(counts)) % 2 == 1
    return np.repeat(bits, counts).reshape(size[1], size[0]).T


def run_lengths(text: str) -> list[int]:
    """The run lengths of COCO's text: 5 bits a character, lowest first, with a sign; from the third
    on what a run differs by from the one before the last."""
    found: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        found.append(value + found[-2] if len(found) > 2 else value)
        value = shift = 0
    return found


def polygon_pixels(corners: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels inside a polygon, `[H, W]`, the same as COCO's tools give.

    The edges are walked on a grid five times as fine. Where they cross the middle of a column of
    pixels, inside and outside change from there downwards.

    Args:
        corners: `[N, 2]`, x and y.
    """
    height, width = size
    fine = (corners * _FINE + 0.5).astype(np.int64)  # towards 0
    walked = [_walk(a, b) for a, b in zip(fine, np.roll(fine, -1, 0), strict=True)]
    x, y = np.concatenate(walked).T
    moved = np.flatnonzero(x[1:] != x[:-1]) + 1
    column = (np.minimum(x[moved], x[moved - 1]) + 0.5) / _FINE - 0.5
    middle = (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
    row = (np.minimum(y[moved], y[moved - 1])[middle] + 0.5) / _FINE - 0.5
    row = np.ceil(row.clip(0, height)).astype(np.int64)
    at = column[middle].astype(np.int64) * height + row
    changes = np.bincount(at, minlength=height * width + 1)[:-1]
    inside: NDArray[np.bool_] = np.cumsum(changes) % 2 == 1
    return inside.reshape(width, height).T


def _walk(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """The points of the fine grid from one corner to the next, both included, `[N, 2]`."""
    across = np.abs(b - a)
    long = 0 if across[0] >= across[1] else 1
    turned = a[long] > b[long]
    first, last = (b, a) if turned else (a, b)
    steps = np.arange(across[long] + 1)
    slope = (last[1 - long] - first[1 - long]) / across[long] if across[long] else 0.0
    points = np.empty((len(steps), 2), np.int64)
    points[:, long] = first[long] + steps
    points[:, 1 - long] = (first[1 - long] + slope * steps + 0.5).astype(np.int64)
    return points[::-1] if turned else points


def classes_of(
    shapes: Sequence[tuple[int, NDArray[np.bool_]]], size: tuple[int, int], ground: int
) -> NDArray[np.uint8]:
    """The class of each pixel, `[H, W]`: the smaller object lies above the larger one.

    Args:
        shapes: class and pixels of each object.
        ground: what a pixel of no object is.
    """
    found = np.full(size, ground, np.uint8)
    for number, pixels in sorted(shapes, key=lambda one: -int(one[1].sum())):
        found[pixels] = number
    return found
