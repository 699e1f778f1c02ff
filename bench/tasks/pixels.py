"""Maps of classes: from logits to the class of each pixel, and what two maps have in common."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..data.dataset import IGNORED
from ..data.preprocess import Geometry
from .task import Array

MOST_CLASSES = 254
"""A pixel is one byte: 255 is `IGNORED`, and the number behind the last class is none of them."""
_STRIP = 1 << 16
"""Pixels that are decided at once, so that they stay in the processor's cache."""
_STRIP_VALUES = 1 << 18
"""Logits that are interpolated at once, for the same reason."""


def places(inputs: int, outputs: int) -> NDArray[np.float32]:
    """Where the middles of `outputs` pixels lie among `inputs` pixels of the same length,
    `[outputs] float32`; as torch's `interpolate` computes it without `align_corners`."""
    scale = np.float32(inputs) / np.float32(outputs)
    return scale * (np.arange(outputs, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)


def best_classes(
    logits: Array, rows: NDArray[np.float32] | None, columns: NDArray[np.float32] | None
) -> tuple[NDArray[np.uint8], bool]:
    """The class of the largest logit at each place, `[H, W]`, and whether all of these are finite.

    Between four logits lies their bilinear mean, in float32: first along the columns, then along
    the rows. Of equal ones the lower class is taken; where one is not finite stands K.

    Args:
        logits: `[K, h, w]` floats.
        rows: `[H]`, the places among the rows of logits, as `places` gives them; None takes every
            row as it is. Beyond the edge lies the edge.
        columns: `[W]`, alike.
    """
    values = logits.astype(np.float32, copy=False)
    numbers, bands = np.arange(len(values)), None
    if rows is not None and columns is not None and len(rows) > 2 * values.shape[1]:
        bands = _contenders(values)
        numbers = np.flatnonzero(bands.any(1))
        values, bands = values[numbers], bands[numbers]
    if columns is not None:
        values = _between(values, columns, 2)
    height = values.shape[1] if rows is None else len(rows)
    found, finite = np.empty((height, values.shape[2]), np.uint8), True
    for strip, some in _strips(values, rows, bands):
        if rows is None:
            part = values[:, strip]
        elif bands is None:
            part = _between(values, rows[strip], 1)
        else:  # two rows of logits, between which the strip lies
            low = min(max(int(rows[strip.start]), 0), max(values.shape[1] - 2, 0))
            part = _between(values[some, low : low + 2], rows[strip] - np.float32(low), 1)
        best, first = part[0].copy(), numbers[some[0]]
        chosen, above = np.full(best.shape, first, np.uint8), np.empty(best.shape, np.bool_)
        mine = above.view(np.uint8)
        for one, k in zip(part[1:], numbers[some[1:]], strict=True):
            np.greater(one, best, out=above)  # without branches: a third of argmax's time
            np.multiply(mine, np.uint8(k), out=mine)
            np.maximum(chosen, mine, out=chosen)
            np.maximum(best, one, out=best)
        odd = ~np.isfinite(best)
        if odd.any():
            chosen[odd], finite = len(logits), False
        found[strip] = chosen
    return found, finite


def _contenders(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which classes may be the largest somewhere between two rows of logits, `[K, h - 1]`.

    A mean lies between the largest and the least of the four around it. A class whose largest is
    below another's least is out; a hundred thousandth is left for rounding. Mostly a tenth remain.
    """
    if min(values.shape[1:]) < 2 or not np.isfinite(values).all():
        return np.ones((len(values), max(values.shape[1] - 1, 1)), np.bool_)
    most = np.maximum(values[:, 1:], values[:, :-1])
    least = np.minimum(values[:, 1:], values[:, :-1])
    most = np.maximum(most[:, :, 1:], most[:, :, :-1])
    least = np.minimum(least[:, :, 1:], least[:, :, :-1]).max(0)
    found: NDArray[np.bool_] = (most >= least - 1e-5 * np.abs(values).max()).any(2)
    return found


def _strips(
    values: NDArray[np.float32], rows: NDArray[np.float32] | None, bands: NDArray[np.bool_] | None
) -> Iterator[tuple[slice, NDArray[np.intp]]]:
    """Rows of the result that are decided at once, few enough for the processor's cache, and the
    classes that matter there."""
    every, wide = np.arange(len(values)), values.shape[2]
    if rows is None:
        step = max(_STRIP // wide, 1)
        yield from ((slice(top, top + step), every) for top in range(0, values.shape[1], step))
        return
    band = rows.astype(np.int64).clip(0, max(values.shape[1] - 2, 0))
    starts = [0, *(np.flatnonzero(np.diff(band)) + 1)] if bands is not None else [0]
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        some = every if bands is None else np.flatnonzero(bands[:, band[start]])
        step = max(_STRIP_VALUES // (wide * len(some)), 1)
        yield from ((slice(top, min(top + step, end)), some) for top in range(start, end, step))


def _between(values: NDArray[np.float32], at: NDArray[np.float32], axis: int) -> Array:
    """Linear means at places along an axis."""
    last = values.shape[axis] - 1
    at = at.clip(0, last)
    low = at.astype(np.int64)
    share = at - low.astype(np.float32)
    shape = [1, 1, 1]
    shape[axis] = len(at)
    share = share.reshape(shape)
    found = values.take(low, axis)
    found *= np.float32(1) - share
    upper = values.take(np.minimum(low + 1, last), axis)
    upper *= share
    found += upper
    return found


def nearest(values: Array, size: tuple[int, int]) -> Array:
    """`[..., H, W]` of `[..., h, w]`, each place with the value of the nearest pixel."""
    if values.shape[-2:] == size:
        return values
    rows, columns = (
        ((np.arange(n) + 0.5) * (m / n)).astype(np.int64).clip(0, m - 1)
        for m, n in zip(values.shape[-2:], size, strict=True)
    )
    found: Array = values[..., rows[:, None], columns]
    return found


def at_size_of_image(output: Array, geometry: Geometry, classes: int) -> NDArray[np.uint8]:
    """The class of each pixel of the image `[H, W]`, `IGNORED` where the network did not look.

    Args:
        output: logits `[K, h, w]`, or classes `[h, w]`, of one image.
    """
    along = zip(
        output.shape[-2:], geometry.image, geometry.scaled, geometry.input, geometry.start,
        strict=True,
    )  # fmt: skip
    rows, columns = (_in_image(*axis) for axis in along)
    if output.ndim == 2:
        y, x = (
            np.floor(at + 0.5).astype(np.int64).clip(0, n - 1)
            for at, n in zip((rows, columns), output.shape, strict=True)
        )
        found: NDArray[np.uint8] = output[y[:, None], x].astype(np.uint8)
    else:
        found, _ = best_classes(output, rows, columns)
    for axis, at, n in ((0, rows, output.shape[-2]), (1, columns, output.shape[-1])):
        unseen = (at < -0.5) | (at >= n - 0.5)
        if unseen.any():
            found[(unseen, slice(None)) if axis == 0 else (slice(None), unseen)] = IGNORED
    return found


def _in_image(
    outputs: int, image: int, scaled: int, inputs: int, start: int
) -> NDArray[np.float32]:
    """Where the pixels of the image lie among the network's outputs, along one axis."""
    scale = np.float32(outputs * scaled / (inputs * image))
    at = scale * (np.arange(image, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    return at - np.float32(start * outputs / inputs)


def confusion(truth: NDArray[np.uint8], predicted: NDArray[np.uint8], classes: int) -> Array:
    """How many pixels of each class were given each class, `[K + 1, K + 1]`; the last column counts
    those that were given none, the last row those that are `IGNORED` in `truth`."""
    wide = classes + 1
    row = np.minimum(np.arange(256), classes).astype(np.uint16) * np.uint16(wide)
    codes = row[truth]
    codes += predicted
    return np.bincount(codes.ravel(), minlength=wide * wide).reshape(wide, wide)


def tolerance(size: tuple[int, int]) -> int:
    """How far apart two edges may lie and still be the same: 0.75 % of the diagonal, at least a
    pixel (Csurka et al., What is a good evaluation measure for semantic segmentation?, 2013)."""
    return max(1, round(0.0075 * float(np.hypot(*size))))


def edges_in_common(
    truth: NDArray[np.uint8], predicted: NDArray[np.uint8], classes: int
) -> NDArray[np.int64]:
    """Pixels at the edges of each class, `[4, K]`: in the truth, and how many of them are near an
    edge of that class in the prediction; in the prediction, and how many are near one in the truth.

    A pixel is at the edge of its class where one of its four neighbours has another one. Near is
    within `tolerance` along rows and along columns. `IGNORED` pixels of `truth` have no edges.
    """
    ignored = truth == IGNORED
    known = np.where(ignored, np.uint8(IGNORED), predicted) if ignored.any() else predicted
    found = np.zeros((4, 256), np.int64)
    at = [np.flatnonzero(_edges(x)) for x in (truth, known)]
    on = [x.ravel()[places] for x, places in zip((truth, known), at, strict=True)]
    present = np.unique(np.concatenate([np.unique(x) for x in on]))
    reach = tolerance((truth.shape[0], truth.shape[1]))
    for start in range(0, len(present), 64):
        some = present[start : start + 64]
        width = next(bits for bits in (8, 16, 32, 64) if len(some) <= bits)
        bit = np.zeros(256, f"u{width // 8}")
        bit[some] = np.left_shift(1, np.arange(len(some), dtype=bit.dtype), dtype=bit.dtype)
        for row, mine, other in ((0, 0, 1), (2, 1, 0)):
            marked = np.zeros(truth.size, bit.dtype)
            marked[at[other]] = bit[on[other]]
            around = _spread(marked.reshape(truth.shape), reach).ravel()
            met = (around[at[mine]] & bit[on[mine]]) != 0
            found[row, some] = np.bincount(on[mine], minlength=256)[some]
            found[row + 1, some] = np.bincount(on[mine][met], minlength=256)[some]
    return found[:, :classes]


def _edges(classes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a pixel of a class has a neighbour of another one."""
    found = np.zeros(classes.shape, np.bool_)
    for here, there in (
        ((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
        ((slice(1, None), slice(None)), (slice(None, -1), slice(None))),
    ):
        one, other = classes[here], classes[there]
        differ = one != other
        differ &= (one != IGNORED) & (other != IGNORED)
        found[here] |= differ
        found[there] |= differ
    return found


def _spread(bits: Array, reach: int) -> Array:
    """Each place with the bits of all places within `reach` rows and columns."""
    for axis in (0, 1):
        padding = [(0, 0), (0, 0)]
        padding[axis] = (reach, reach)
        bits = np.pad(bits, padding)
        bits, covered = np.moveaxis(bits, axis, 0), 1
        while covered < 2 * reach + 1:
            step = min(covered, 2 * reach + 1 - covered)
            bits = bits[:-step] | bits[step:]
            covered += step
        bits = np.moveaxis(bits, 0, axis)
    return bits
