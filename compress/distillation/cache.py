"""The teacher's outputs for every training image, kept on disk: later epochs and runs only read.

The folder has `cache.json`, which names the teacher, the images and the augmentation, and a folder
for each view (one augmentation of every image) with a `.npy` for each output, memory-mapped when
read. A view appears by a rename when it is whole, so an interrupted one is never used. Filling goes
on with the first view that is missing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vcompress.bench.bundle import sha256
from vcompress.bench.bundle.atomic import staged_file
from vcompress.bench.errors import UserError

from ..data.loader import Data

_FORMAT = 1
_SAID = {
    "teachers": "of another teacher",
    "takes": "of a teacher that takes other inputs",
    "classes": "of classes in another order",
    "images": "of other images",
    "data": "with other preprocessing, augmentation or seed",
    "outputs": "with other outputs (features)",
    "format": "by another version",
}


@dataclass(frozen=True)
class Output:
    """One array of a view, `[N, *shape]`."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """float32, or float16 for features, which are large."""


@dataclass(frozen=True)
class TeacherCache:
    folder: Path
    outputs: tuple[Output, ...]
    indices: npt.NDArray[np.int64]
    """The training images in the order of the rows, ascending."""
    opened: dict[int, list[npt.NDArray[Any]]] = field(default_factory=dict, repr=False)

    def has(self, view: int) -> bool:
        return (self._view(view) / "view.json").is_file()

    def write(
        self, view: int, batches: Iterable[tuple[npt.NDArray[np.int64], Sequence[Tensor]]],
        unreadable: Container[int] = (),
    ) -> None:  # fmt: skip
        """Keep what `batches` give, `(indices [B], [B, *shape] of each output)`, of all images.

        Raises:
            UserError: values that are not finite, or images that are missing from the batches.
        """
        target = self._view(view)
        work = self.folder / f"{target.name}.writing-{socket.gethostname()}-{os.getpid()}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            arrays = [
                np.lib.format.open_memmap(
                    work / f"{o.name}.npy", "w+", o.dtype, (len(self.indices), *o.shape)
                )
                for o in self.outputs
            ]
            written = np.zeros(len(self.indices), dtype=bool)
            for indices, values in batches:
                rows = self._rows(indices)
                for output, array, value in zip(self.outputs, arrays, values, strict=True):
                    with np.errstate(over="ignore"):  # the next line says so
                        array[rows] = value.cpu().numpy()
                    if not np.isfinite(array[rows]).all():
                        raise UserError(
                            f"the teacher's {output.name} are not finite as {output.dtype}, so "
                            f"they cannot be cached. Leave --cache-teacher out."
                        )
                written[rows] = True
            # What cannot be read is not trained on either: another image stands in for it.
            if lost := [int(i) for i in self.indices[~written] if int(i) not in unreadable]:
                raise UserError(f"{len(lost)} images are missing, the first is {lost[0]}.")
            for array in arrays:
                array.flush()
            del arrays
            sums = {o.name: sha256(work / f"{o.name}.npy") for o in self.outputs}
            _write(work / "view.json", sums)
            try:
                work.rename(target)
            except OSError:
                if not self.has(view):  # another run was here first otherwise
                    raise
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def read(self, view: int, indices: Tensor) -> list[Tensor]:
        """The outputs of the images `[B]`, `[B, *shape] float32`.

        Raises:
            UserError: a file that was changed since it was written.
        """
        if view not in self.opened:
            self.opened[view] = self._open(view)
        rows = self._rows(indices.cpu().numpy())
        return [torch.from_numpy(array[rows].astype(np.float32)) for array in self.opened[view]]

    def _open(self, view: int) -> list[npt.NDArray[Any]]:
        folder = self._view(view)
        try:
            sums = json.loads((folder / "view.json").read_text(encoding="utf-8"))
            found = []
            for output in self.outputs:
                file = folder / f"{output.name}.npy"
                if sha256(file) != sums[output.name]:
                    raise ValueError(f"{file.name} has another hash than when it was written")
                array = np.load(file, mmap_mode="r", allow_pickle=False)
                if array.shape != (len(self.indices), *output.shape):
                    raise ValueError(f"{file.name} is {list(array.shape)}")
                found.append(array)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{folder}: this part of the teacher's cache is damaged ({error}). Remove the "
                f"folder {folder.name} and run again."
            ) from None
        return found

    def _rows(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.searchsorted(self.indices, indices)

    def _view(self, view: int) -> Path:
        return self.folder / f"view-{view:04}"


def open_cache(
    folder: Path, identity: Mapping[str, Any], outputs: Sequence[Output], data: Data, views: int
) -> TeacherCache:
    """The cache in `folder`, a new one where there is none.

    Args:
        identity: what else must be the same: `teachers`, `takes` and `classes`.
        views: how many will be kept, to see whether the disk has room.

    Raises:
        UserError: a folder with something else, the cache of another teacher, or a full disk.
    """
    wanted = json.loads(json.dumps({
        "format": _FORMAT, **identity, "images": data.dataset.fingerprint,
        "data": {
            f.name: _plain(getattr(data, f.name))
            for f in dataclasses.fields(data) if f.name not in ("dataset", "views", "yields_views")
        },
        "outputs": [dataclasses.asdict(output) for output in outputs],
    }, default=str))  # fmt: skip
    indices = np.sort(data.dataset.splits["train"])
    cache = TeacherCache(folder, tuple(outputs), indices)
    file = folder / "cache.json"
    if file.is_file():
        _check_same(file, wanted)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--cache-teacher {folder}: this is no teacher's cache; name a new folder.")
    row = sum(int(np.prod(o.shape)) * np.dtype(o.dtype).itemsize for o in outputs)
    missing = sum(not cache.has(view) for view in range(views))
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = row * len(indices) * missing, shutil.disk_usage(folder).free
    if needed > 0.95 * free:
        raise UserError(
            f"--cache-teacher {folder}: {missing} views of {len(indices)} images need "
            f"{needed / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB. Make room, lower "
            f"--cache-views, or choose a method on the outputs, such as kd."
        )
    if not file.is_file():
        _write(file, wanted)
    _sweep(folder)
    return cache


def _check_same(file: Path, wanted: Mapping[str, Any]) -> None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("not a table")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read ({error}). Name a new folder.") from None
    for key, value in wanted.items():
        if found.get(key) != value:
            raise UserError(
                f"--cache-teacher {file.parent}: it was made {_SAID.get(key, f'with other {key}')}"
                f". Name another folder, or remove this one."
            )


def _sweep(folder: Path) -> None:
    """Remove what a killed run of this machine has left half-written."""
    start = f".writing-{socket.gethostname()}-"
    for left in folder.iterdir():
        name, sign, number = left.name.partition(start)
        if not sign or not name.startswith("view-") or not number.isdecimal():
            continue
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            shutil.rmtree(left, ignore_errors=True)
        except PermissionError:
            continue


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


def _write(file: Path, content: Mapping[str, Any]) -> None:
    with staged_file(file) as stream:
        stream.write((json.dumps(content, indent=1) + "\n").encode())
