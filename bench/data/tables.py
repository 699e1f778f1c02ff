"""Images with a table beside them: `labels.csv`, `labels.jsonl` or `targets.csv` in their folder.

A row names an image, relative to the folder, and what belongs to it. A column `split` with train,
val and test divides the images; without it the seed does.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import IMAGENET
from ..errors import UserError, nearest
from ..text import is_name
from .dataset import LARGEST, Dataset
from .preprocess import read_image
from .sources import is_there
from .splits import PATH, SPLITS, drawn_by_seed, fingerprint, without_overlap

LABELS, NUMBERS = ("labels.csv", "labels.jsonl"), ("targets.csv", "targets.jsonl")
SEPARATOR = "|"


@dataclass(frozen=True)
class _Table:
    """What a file says, a row for each image."""

    file: Path
    columns: tuple[str, ...]
    """Without `image` and `split`."""
    images: tuple[Path, ...]
    splits: tuple[str, ...]
    """Empty where the table has no such column."""
    rows: tuple[dict[str, Any], ...]


def labels_dataset(source: str, seed: int) -> Dataset:
    """Images with any number of labels: a column `labels` (`cat|dog`, a list in JSON lines), or a
    column with 0 or 1 for each label. Targets are `[N, K] int8`.

    Raises:
        UserError: no table, a missing image, a column or a value that is not understood.
    """
    table = _read(source, LABELS)
    if table.columns == ("labels",):
        given = [
            _names(row["labels"], f"{table.file}, row {n}") for n, row in enumerate(table.rows, 1)
        ]
        names = sorted({name for one in given for name in one})
        if len(names) < 1:
            raise UserError(f"{table.file}: no image has a label. Write them as cat|dog.")
        place = {name: k for k, name in enumerate(names)}
        targets = np.zeros((len(given), len(names)), np.int8)
        for n, one in enumerate(given):
            targets[n, [place[name] for name in one]] = 1
    else:
        if "labels" in table.columns:
            odd = next(c for c in table.columns if c != "labels")
            raise UserError(f"{table.file}: unknown column {odd!r}. Expected image, labels, split.")
        names = list(table.columns)
        values = _numbers(table)
        wrong = np.argwhere((values != 0) & (values != 1))
        if len(wrong):
            n, k = (int(x) for x in wrong[0])
            raise UserError(
                f"{table.file}, row {n + 1}: {names[k]} = {values[n, k]:g}; expected 0 or 1, or a "
                f"single column labels with names such as cat|dog."
            )
        targets = values.astype(np.int8)
    return _dataset(table, seed, tuple(names), targets)


def numbers_dataset(source: str, seed: int) -> Dataset:
    """Images with one or more numbers: a column for each. Targets are `[N, K] float32`.

    Raises:
        UserError: no table, a missing image, or a value that is no finite number.
    """
    table = _read(source, NUMBERS)
    return _dataset(table, seed, table.columns, _numbers(table).astype(np.float32))


def _read(source: str, known: tuple[str, ...]) -> _Table:
    path = file = Path(source)
    if not is_there(path) or not (path.is_dir() or path.suffix in (".csv", ".jsonl")):
        raise UserError(
            f"--data {source!r:.200}: no such folder. Expected digits, or a folder with "
            f"{' or '.join(known)}.{nearest(source, ['digits'])}"
        )
    if path.is_dir():
        found = [path / name for name in known if (path / name).is_file()]
        if not found:
            raise UserError(
                f"{path}: no {' or '.join(known)} in this folder. Write one with a column image "
                f"and what belongs to each."
            )
        file = found[0]
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as UTF-8 text ({error}).") from None
    columns, rows = _csv(file, text) if file.suffix == ".csv" else _json_lines(file, text)
    if "image" not in columns:
        raise UserError(
            f"{file}: no column image; it has {', '.join(columns[:8]) or 'none'}."
            f"{nearest('image', columns)} Expected image, "
            f"{'labels' if known is LABELS else 'and a column for each number'}."
        )
    rest = tuple(c for c in columns if c not in ("image", "split"))
    if not rest:
        raise UserError(f"{file}: nothing but image names in it; add what belongs to each.")
    if not rows:
        raise UserError(f"{file}: no rows. Add a line for each image.")
    if odd := next((c for c in rest if not is_name(c)), None):
        raise UserError(f"{file}: the column name {odd!r} is not printable; rename it.")
    images = _images(file, [str(row["image"]) for row in rows])
    return _Table(file, rest, images, _splits(file, columns, rows), tuple(rows))


def _csv(file: Path, text: str) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    try:
        lines = [line for line in csv.reader(text.splitlines(), strict=True) if line]
    except csv.Error as error:
        raise UserError(f"{file}: not valid CSV ({error}).") from None
    if not lines:
        raise UserError(f"{file}: empty. Write a header, such as image,labels, and the rows.")
    columns = tuple(name.strip() for name in lines[0])
    if len(set(columns)) != len(columns):
        raise UserError(f"{file}: a column name stands there twice; rename one.")
    for number, line in enumerate(lines[1:], 1):
        if len(line) != len(columns):
            raise UserError(
                f"{file}, row {number}: {len(line)} values for {len(columns)} columns. Quote what "
                f"holds a comma."
            )
    return columns, [dict(zip(columns, line, strict=True)) for line in lines[1:]]


def _json_lines(file: Path, text: str) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}, line {number}: not valid JSON ({error}).") from None
        if not isinstance(row, dict) or (rows and row.keys() != rows[0].keys()):
            raise UserError(
                f"{file}, line {number}: expected an object with "
                f"{', '.join(rows[0]) if rows else 'image and what belongs to it'}."
            )
        rows.append(row)
    return tuple(rows[0]) if rows else ("image", "labels"), rows


def _images(file: Path, names: Sequence[str]) -> tuple[Path, ...]:
    folder = file.parent
    if doubled := len(names) - len(set(names)):
        raise UserError(f"{file}: {doubled} images stand there more than once; keep one row each.")
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts or not name.strip():
            raise UserError(
                f"{file}: the image {name!r:.80} does not lie in {folder}. Name images relative to "
                f"the table's folder."
            )
    missing = [
        name for name in names if not (is_there(folder / name) and (folder / name).is_file())
    ]
    if missing:
        raise UserError(
            f"{file}: {len(missing)} of {len(names)} images are not there, such as "
            f"{', '.join(name[:80] for name in missing[:3])}. Names are relative to {folder}."
        )
    return tuple(folder / name for name in names)


def _splits(file: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    if "split" not in columns:
        return ()
    found = tuple(str(row["split"]).strip() for row in rows)
    for number, name in enumerate(found, 1):
        if name not in SPLITS:
            raise UserError(
                f"{file}, row {number}: split = {name!r:.40}; expected {', '.join(SPLITS)}."
            )
    if absent := [name for name in SPLITS if name not in found]:
        raise UserError(
            f"{file}: no image is in the split {absent[0]}. Give each of {', '.join(SPLITS)} some, "
            f"or remove the column: the seed then divides the images."
        )
    return found


def _names(value: Any, where: str) -> list[str]:
    """The labels of one image; none is allowed."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(SEPARATOR) if part.strip()]
    if not isinstance(value, list) or not all(map(is_name, value)):
        raise UserError(f"{where}: labels = {value!r:.60}; expected names such as cat|dog.")
    return sorted(set(value))


def _numbers(table: _Table) -> NDArray[np.float64]:
    values = np.zeros((len(table.rows), len(table.columns)))
    for n, row in enumerate(table.rows):
        for k, name in enumerate(table.columns):
            try:
                values[n, k] = number = float(row[name])
            except (TypeError, ValueError, OverflowError):
                number = math.nan
            if not abs(number) <= LARGEST or isinstance(row[name], bool):
                raise UserError(
                    f"{table.file}, row {n + 1}: {name} = {row[name]!r:.40}; expected a number. "
                    f"Columns beside image and split are numbers."
                )
    return values


def _dataset(table: _Table, seed: int, names: tuple[str, ...], targets: NDArray[Any]) -> Dataset:
    paths, folder = table.images, table.file.parent
    keys = [path.relative_to(folder).as_posix() for path in paths]
    where = np.array([SPLITS.index(name) for name in table.splits], dtype=np.int64)
    sizes, undivided = [path.stat().st_size for path in paths], ""
    if table.splits:
        splits = {name: np.flatnonzero(where == n) for n, name in enumerate(SPLITS)}
        splits = without_overlap(splits, paths, sizes, where, SPLITS)
    else:
        alike = np.zeros(len(paths), np.int64)
        splits, undivided = drawn_by_seed(keys, alike, ("all",), seed, paths, sizes)
    digest = hashlib.sha256("\0".join(names).encode())
    for key, size, row in zip(keys, sizes, targets, strict=True):
        digest.update(f"{key}\0{size}\0".encode(*PATH) + row.tobytes())
    source = str(folder) if table.file.name in (*LABELS, *NUMBERS) else str(table.file)
    return Dataset(
        source, names, targets, splits, fingerprint(digest, splits),
        lambda i: read_image(paths[i]), IMAGENET, seed=seed, drawn=not table.splits,
        undivided=undivided,
    )  # fmt: skip
