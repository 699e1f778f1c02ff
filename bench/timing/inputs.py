"""Inputs of a model while it is timed: a ring of different arrays, never zeros."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError, nearest
from ..runtimes.session import TensorSpec

RING = 64  # different inputs at least, so that no branch or cache learns the one image
MOST_BYTES = 256 * 2**20
INTEGERS = 2  # integers are drawn from 0..INTEGERS-1: they may be indices into small tables


@dataclass(frozen=True)
class Feed:
    """The ring and where it comes from."""

    ring: tuple[dict[str, NDArray[Any]], ...]
    source: str

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in self.ring[0].items()}


def resolve_shapes(
    inputs: Sequence[TensorSpec], batch: int = 1, given: Mapping[str, Sequence[int]] | None = None
) -> dict[str, tuple[int, ...]]:
    """A whole shape for each input.

    A free first axis is the batch, and so is an axis of another input with the same symbol; the
    shapes that are given bind their symbols too. Every other free axis must be given. Raises
    `UserError` that says which `--shape NAME=...` is missing.
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
    # Only of inputs with every symbol once: [n, n] says nothing about a batch.
    known: dict[int | str, int] = {
        s.shape[0]: batch
        for s in inputs
        if s.free[:1] == s.shape[:1] and len(set(s.free)) == len(s.free)
    }
    for spec in inputs:
        if spec.name in given:
            shapes[spec.name] = _fitting(spec, tuple(given[spec.name]))
            known |= dict(zip(spec.shape, shapes[spec.name], strict=True))
    missing = []
    for spec in inputs:
        if spec.name in given:
            continue
        sizes = [size if isinstance(size, int) else known.get(size) for size in spec.shape]
        if None in sizes:
            missing.append(spec)
            continue
        first = spec.shape[:1]
        if first and isinstance(first[0], int) and batch not in (1, first[0]):
            raise UserError(
                f"The input {spec} has a fixed first dimension, so a batch of {batch} does not "
                "fit. Export the model with a free batch, or omit --batch."
            )
        shapes[spec.name] = tuple(size for size in sizes if size is not None)
    if missing:
        raise UserError(
            f"The model takes {', '.join(map(str, inputs))}. Say the free dimensions: "
            f"{' '.join(_example(spec, batch) for spec in missing)} with a number for each <...>."
        )
    return shapes


def _example(spec: TensorSpec, batch: int) -> str:
    sizes = "x".join(
        str(size) if isinstance(size, int) else str(batch) if axis == 0 else f"<{size}>"
        for axis, size in enumerate(spec.shape)
    )
    return f"--shape {spec.name}={sizes}"


def _fitting(spec: TensorSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) != len(spec.shape) or any(
        isinstance(want, int) and want != got for want, got in zip(spec.shape, shape, strict=False)
    ):
        raise UserError(
            f"--shape {spec.name}={'x'.join(map(str, shape))} does not fit the input {spec}."
        )
    return shape


def synthetic(
    inputs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]], seed: int = 0
) -> Feed:
    """Values with the statistics of normalised images: N(0, 1); integers and bools uniform."""
    rng = np.random.default_rng(seed)
    size = sum(prod(shapes[s.name]) * _itemsize(s.dtype) for s in inputs)
    count = max(4, min(RING, MOST_BYTES // max(size, 1)))
    ring = tuple({s.name: _draw(rng, s, shapes[s.name]) for s in inputs} for _ in range(count))
    kinds = {s.dtype for s in inputs}
    source = "N(0, 1)" if any("float" in k for k in kinds) else ""
    if any("int" in k or k == "bool" for k in kinds):
        source = f"{source}{', ' if source else ''}integers 0 or 1"
    return Feed(ring, f"random {source}, seed {seed}")


def _itemsize(dtype: str) -> int:
    try:
        return np.dtype(dtype).itemsize
    except TypeError:
        return 2


def _draw(rng: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...]) -> NDArray[Any]:
    if spec.dtype in ("float16", "float32", "float64"):
        return rng.standard_normal(shape, dtype=np.float32).astype(spec.dtype)
    if spec.dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if spec.dtype == "uint8" and len(shape) == 4:
        return rng.integers(0, 256, shape, dtype=np.uint8)  # an image
    if "int" in spec.dtype:
        return rng.integers(0, INTEGERS, shape).astype(spec.dtype)
    raise UserError(
        f"The input {spec} cannot be filled with random values. Give a file of arrays: "
        f"--inputs FILE.npz with {spec.name!r} in it."
    )


def from_images(spec: TensorSpec, images: NDArray[np.float32], batch: int, source: str) -> Feed:
    """A ring of batches from preprocessed images [N, C, H, W] float32; no image twice in a batch
    unless there are fewer than the batch holds."""
    count = max(4, min(RING, MOST_BYTES // max(images[0].nbytes * batch, 1)))
    order = np.arange(count * batch).reshape(count, batch) % len(images)
    if order.shape[1] and count * batch > len(images):
        rng = np.random.default_rng(0)
        order = rng.integers(0, len(images), size=order.shape)
    ring = tuple({spec.name: np.ascontiguousarray(images[i]).astype(spec.dtype)} for i in order)
    return Feed(ring, source)


def from_file(path: str | Path, inputs: Sequence[TensorSpec]) -> Feed:
    """Arrays of a .npz by input name. One set, so a ring of one; the source says so."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    # TypeError and AttributeError: a lone .npy is an array and no archive.
    except (OSError, ValueError, EOFError, BadZipFile, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not a readable .npz of plain arrays ({error}). Write it with "
            "numpy.savez(FILE, NAME=array)."
        ) from None
    for spec in inputs:
        if spec.name not in arrays:
            raise UserError(
                f"{path} has no array {spec.name!r}. Expected {', '.join(map(str, inputs))}; "
                f"got {', '.join(arrays)}."
            )
        if str(arrays[spec.name].dtype) != spec.dtype:
            raise UserError(
                f"{path}: {spec.name!r} is {arrays[spec.name].dtype}; the model takes {spec}."
            )
        _fitting(spec, arrays[spec.name].shape)
    return Feed(({s.name: arrays[s.name] for s in inputs},), f"one set from {Path(path).name}")
