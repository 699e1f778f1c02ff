"""Inputs of a model while it is timed: a ring of different arrays, never zeros.

NumPy has no bfloat16 and no types of 8 or 4 bits but integers. Arrays of such an input hold its
bits: bfloat16 in uint16, 8-bit floating point in uint8, and 4-bit integers in int8 or uint8 of the
input's shape, two to a byte from the first byte on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..apart import memory_limit
from ..errors import UserError, nearest
from ..runtimes.session import TensorSpec

RING = 64  # different inputs at least, so that no branch or cache learns the one image
MOST_BYTES = 256 * 2**20
INTEGERS = 2  # integers are drawn from 0..INTEGERS-1: they may be indices into small tables
_BATCH = re.compile(r"n|b|bs|bsz|.*batch.*", re.IGNORECASE)
_LENGTH = re.compile(r"t|l|.*(time|seq|len|frame|step|token|sample).*", re.IGNORECASE)
_HELD = {
    "bfloat16": "uint16", "int4": "int8", "uint4": "uint8", "float8e4m3fn": "uint8",
    "float8e4m3fnuz": "uint8", "float8e5m2": "uint8", "float8e5m2fnuz": "uint8",
}  # fmt: skip
"""NumPy's type for the bits of a type that it does not have."""


@dataclass(frozen=True)
class Feed:
    """The ring and where it comes from."""

    ring: tuple[dict[str, NDArray[Any]], ...]
    source: str
    batch: int = 1
    """Images in a call."""
    doubtful: tuple[str, ...] = ()
    """Integer inputs of random values: as a length, a shape or an index they say little."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in self.ring[0].items()}


def batch_axis(spec: TensorSpec) -> int | None:
    """The free axis that counts the images of a call: one that is called so, else the first one,
    unless its name is that of a length. None where there is none."""
    if len(set(spec.free)) < len(spec.free):
        return None  # [n, n] says nothing about a batch
    for axis, size in enumerate(spec.shape):
        if isinstance(size, str) and _BATCH.fullmatch(size):
            return axis
    first = spec.shape[0] if spec.shape else None
    return 0 if isinstance(first, str) and not _LENGTH.fullmatch(first) else None


def batch_of(inputs: Sequence[TensorSpec], shapes: Mapping[str, Sequence[int]]) -> int:
    """Images in a call with these shapes; 1 where the inputs do not tell."""
    for spec in inputs:
        axis = batch_axis(spec)
        if axis is not None:
            return max(shapes[spec.name][axis], 1)
    told = [s for s in inputs if not (s.free[:1] == s.shape[:1] and s.free)]
    found = [shapes[s.name] for s in told if len(shapes[s.name]) >= 2]
    images = [shape[0] for shape in found if len(shape) >= 4]
    firsts = {shape[0] for shape in found}
    batch = images[0] if images else firsts.pop() if len(firsts) == 1 else 1
    return max(batch, 1)


def resolve_shapes(
    inputs: Sequence[TensorSpec], batch: int = 1, given: Mapping[str, Sequence[int]] | None = None
) -> dict[str, tuple[int, ...]]:
    """A whole shape for each input.

    The axis that counts images takes the batch, and so does an axis of another input with the same
    symbol; the shapes that are given bind their symbols too. Every other free axis must be given.
    Raises `UserError` that says which `--shape NAME=...` is missing.
    """
    given = dict(given or {})
    names = [spec.name for spec in inputs]
    for name in given:
        if name not in names:
            raise UserError(
                f"--shape {name}=...: the model has no such input. It has {', '.join(names)}."
                f"{nearest(name, names)}"
            )
    shapes: dict[str, tuple[int, ...]] = {}
    axes = {spec.name: batch_axis(spec) for spec in inputs}
    known: dict[int | str, int] = {
        spec.shape[axis]: batch for spec in inputs if (axis := axes[spec.name]) is not None
    }
    for spec in inputs:
        if spec.name in given:
            shapes[spec.name] = _fitting(spec, tuple(given[spec.name]))
            if spec.ranked:
                known |= dict(zip(spec.shape, shapes[spec.name], strict=True))
    missing = []
    for spec in inputs:
        if spec.name in given:
            continue
        sizes = [size if isinstance(size, int) else known.get(size) for size in spec.shape]
        if None in sizes or not spec.ranked:
            missing.append(spec)
            continue
        shapes[spec.name] = tuple(size for size in sizes if size is not None)
    if missing:
        raise UserError(
            f"The model takes {', '.join(map(str, inputs))}. Say the free dimensions: "
            f"{' '.join(_example(spec, batch) for spec in missing)} with a number for each <...>."
        )
    if batch != 1 and all(axis is None for axis in axes.values()):
        check_batch(inputs, shapes, batch, "--shape" if given else "")
    return shapes


def check_batch(
    inputs: Sequence[TensorSpec], shapes: Mapping[str, Sequence[int]], batch: int, where: str = ""
) -> None:
    """Raise `UserError` where a batch was asked for and the shapes hold another one.

    Args:
        where: what else gave the shapes, such as --shape.
    """
    found = batch_of(inputs, shapes)
    if found == batch:
        return
    if where:
        raise UserError(
            f"--batch {batch} and {where} do not agree: the shapes hold a batch of {found}. Give "
            "one of the two."
        )
    raise UserError(
        f"The model takes {', '.join(map(str, inputs))}, a fixed first dimension, so a batch of "
        f"{batch} does not fit. Export it with a free batch, or omit --batch."
    )


def _example(spec: TensorSpec, batch: int) -> str:
    if not spec.ranked:
        return f"--shape {spec.name}=<{'elements' if spec.sequence else 'size'}>x<...>"
    axis_of_batch = batch_axis(spec)
    if axis_of_batch is None and not _LENGTH.fullmatch(str(spec.shape[0])):
        axis_of_batch = 0
    sizes = "x".join(
        str(size) if isinstance(size, int) else str(batch) if axis == axis_of_batch else f"<{size}>"
        for axis, size in enumerate(spec.shape)
    )
    return f"--shape {spec.name}={sizes}"


def _fitting(spec: TensorSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
    if not spec.takes(shape):
        raise UserError(
            f"--shape {spec.name}={'x'.join(map(str, shape))} does not fit the input {spec}."
        )
    return shape


def synthetic(
    inputs: Sequence[TensorSpec],
    shapes: Mapping[str, tuple[int, ...]],
    seed: int = 0,
    most: int = RING,
) -> Feed:
    """Values with the statistics of normalised images: N(0, 1); integers and bools uniform.

    Args:
        most: largest number of sets in the ring.
    """
    rng = np.random.default_rng(seed)
    size = sum(prod(shapes[s.name]) * _itemsize(s.dtype) for s in inputs)
    count = min(most, _ring_size(size, "Give a smaller --batch or --shape."))
    ring = tuple({s.name: _draw(rng, s, shapes[s.name]) for s in inputs} for _ in range(count))
    kinds = {s.dtype for s in inputs}
    said = ["N(0, 1)"] if any("float" in k for k in kinds) else []
    if any(s.dtype == "uint8" and len(shapes[s.name]) == 4 for s in inputs):
        said.append("bytes 0 to 255")
    if any(
        ("int" in s.dtype and not (s.dtype == "uint8" and len(shapes[s.name]) == 4))
        or s.dtype == "bool"
        for s in inputs
    ):
        said.append("integers 0 or 1")
    return Feed(
        ring, f"random {', '.join(said)}, seed {seed}" if said else "none",
        batch_of(inputs, shapes), tuple(s.name for s in inputs if s.dtype in ("int32", "int64")),
    )  # fmt: skip


def _ring_size(size: int, instead: str) -> int:
    """How many sets of `size` bytes the ring holds; see `_check_memory`."""
    _check_memory(size, instead)
    least = 4 if 8 * size < memory_limit() else 1
    return max(least, min(RING, MOST_BYTES // max(size, 1)))


def _check_memory(size: int, instead: str) -> None:
    """Raise a UserError where a set of `size` bytes would take more than half the memory."""
    if size > memory_limit() // 2:
        raise UserError(
            f"One set of inputs would take {size / 1e9:.3g} GB, more than half the memory here. "
            f"{instead}"
        )


def _itemsize(dtype: str) -> int:
    try:
        return np.dtype(_HELD.get(dtype, dtype)).itemsize
    except TypeError:
        return 2


def _draw(rng: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...]) -> NDArray[Any]:
    # asarray: of no dimensions NumPy gives a number, and a runtime takes arrays.
    if spec.dtype in ("float16", "float32", "float64"):
        values = rng.standard_normal(shape, dtype=np.float32)
        return np.asarray(values, dtype=spec.dtype)
    if spec.dtype == "bfloat16":
        return _bfloat16(np.asarray(rng.standard_normal(shape, dtype=np.float32)))
    if spec.dtype == "bool":
        return np.asarray(rng.integers(0, 2, shape), dtype=bool)
    if spec.dtype == "uint8" and len(shape) == 4:
        return rng.integers(0, 256, shape, dtype=np.uint8)  # an image
    if spec.dtype in ("int4", "uint4"):
        return _packed(np.asarray(rng.integers(0, INTEGERS, shape)).astype(_HELD[spec.dtype]))
    if "int" in spec.dtype:
        return np.asarray(rng.integers(0, INTEGERS, shape), dtype=spec.dtype)
    raise UserError(
        f"The input {spec} cannot be filled with random values. Give a file of arrays: "
        f"--inputs FILE.npz with {spec.name!r} in it."
    )


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits in bfloat16, rounded to nearest, ties to even."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded: NDArray[np.uint16] = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    nan = np.uint16(0x7FC0)
    return np.where(np.isnan(values), nan, rounded)


def _packed(values: NDArray[Any]) -> NDArray[Any]:
    """4-bit integers, two to a byte with the first in the low half, in an array of their shape."""
    flat = (values.reshape(-1).astype(np.int16) & 0xF).astype(np.uint8)
    pairs = np.append(flat, np.uint8(0)) if flat.size % 2 else flat
    held = np.zeros(flat.size, np.uint8)
    held[: len(pairs) // 2] = pairs[::2] | pairs[1::2] << 4
    return held.view(values.dtype).reshape(values.shape)


def from_images(spec: TensorSpec, images: NDArray[np.float32], batch: int, source: str) -> Feed:
    """A ring of batches from preprocessed images [N, C, H, W] float32; no image twice in a batch
    unless there are fewer than the batch holds."""
    count = _ring_size(images[0].nbytes * batch, "Give a smaller --batch.")
    order = np.arange(count * batch).reshape(count, batch) % len(images)
    if order.shape[1] and count * batch > len(images):
        rng = np.random.default_rng(0)
        order = rng.integers(0, len(images), size=order.shape)
    return Feed(tuple({spec.name: spec.of_images(images[i])} for i in order), source, batch)


def from_file(path: str | Path, inputs: Sequence[TensorSpec]) -> Feed:
    """Arrays of a .npz by input name. One set, so a ring of one; the source says so."""
    wanted = [spec.name for spec in inputs]
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = [name for name in archive.files if name in wanted]
            sizes = {item.filename: item.file_size for item in archive.zip.infolist()}
            _check_memory(
                sum(sizes.get(f"{name}.npy", sizes.get(name, 0)) for name in names),
                f"Give smaller arrays than those of {path}.",
            )
            # What has not the ending .npy comes as bytes.
            arrays = {name: np.asarray(archive[name]) for name in names}
            found = ", ".join(archive.files)
    except UserError:
        raise
    except Exception as error:  # NumPy, zipfile and zlib raise many kinds on a damaged file
        raise UserError(
            f"{path} is not a readable .npz of plain arrays ({error}). Write it with "
            "numpy.savez(FILE, NAME=array)."
        ) from None
    for spec in inputs:
        if spec.name not in arrays:
            raise UserError(
                f"{path} has no array {spec.name!r}. Expected {', '.join(map(str, inputs))}; "
                f"got {found}."
            )
        arrays[spec.name] = _as_held(path, spec, arrays[spec.name])
        _fitting(spec, arrays[spec.name].shape)
    ring = ({s.name: arrays[s.name] for s in inputs},)
    shapes = {name: array.shape for name, array in ring[0].items()}
    return Feed(ring, f"one set from {Path(path).name}", batch_of(inputs, shapes))


def _as_held(path: str | Path, spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
    """The user's array as a runtime takes it. Raises `UserError` where its type does not fit."""
    kind = str(array.dtype)
    if kind == spec.dtype or (spec.dtype == "str" and array.dtype.kind == "U"):
        return array
    if spec.dtype == "bfloat16" and kind == "float32":
        return _bfloat16(array)
    if spec.dtype in ("int4", "uint4") and kind == _HELD[spec.dtype]:
        low, high = (-8, 7) if spec.dtype == "int4" else (0, 15)
        if array.size and not (low <= array.min() and array.max() <= high):
            raise UserError(f"{path}: {spec.name!r} goes beyond {low} to {high}, those of {spec}.")
        return _packed(array)
    held = _HELD.get(spec.dtype, "")
    # ml_dtypes' own types are stored as bytes without a type ("V2").
    if held and "int4" not in spec.dtype and kind in (held, f"|V{_itemsize(spec.dtype)}"):
        return np.ascontiguousarray(array).view(held)
    hint = {"bfloat16": ": give float32, or its bits as uint16", "str": ": give texts"}
    more = hint.get(spec.dtype, f": give {held}" if held else "")
    raise UserError(f"{path}: {spec.name!r} is {kind}; the model takes {spec}{more}.")
