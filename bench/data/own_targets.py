"""What the targets of the user's own data may be, for each task.

Each function takes the targets as the user's code gives them, the names of the classes where it
gives them too, and the source for messages. It returns the names, and a row for each target in the
order of the splits. Where no names are given, the first split's targets define them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UserError, nearest
from ..text import is_name
from .dataset import IGNORED, LARGEST
from .mask_values import MOST, numbers_or_colours, stored

Names: TypeAlias = tuple[str, ...]
Raw: TypeAlias = Mapping[str, Sequence[Any]]
"""The targets by split, with lists for arrays and sets."""

ReadTargets: TypeAlias = Callable[[Raw, Names | None, str], tuple[Names, NDArray[Any]]]
"""From targets, the names of the classes where the user gives them, and the source: the names, and
a row for each target, in the order of the splits. The first split defines what is not given."""

_MOST = 1_000_000
"""Classes or labels."""


def class_targets(raw: Raw, names: Names | None, source: str) -> tuple[Names, NDArray[np.int64]]:
    """A class number or name each, `[N] int64`."""
    for name, i, value in _each(raw):
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise UserError(
                f"{source}: target {i} of {name} is {value!r:.60}; expected the number or the name "
                f"of a class."
            )
    kinds = {type(value) for _, _, value in _each(raw)}
    if len(kinds) > 1:
        raise UserError(f"{source}: some targets are numbers and some names. Give one kind.")
    known = names or _all_names([next(iter(raw.values()))], source)
    numbers = _numbered(raw, known, names is not None, source)
    found = np.array([one for (one,) in numbers], dtype=np.int64)
    if len(known) < 2:
        raise UserError(f"{source}: found {len(known)} class; expected at least two.")
    return known, found


def label_targets(raw: Raw, names: Names | None, source: str) -> tuple[Names, NDArray[np.int8]]:
    """Labels as names or numbers, any number of them, or 0 or 1 for each label, `[N, K] int8`.

    Where every target is as long as there are labels (two or more where no names are given) and
    holds 0 and 1 alone, it is of the last kind.
    """
    rows = []
    for name, i, value in _each(raw):
        if not isinstance(value, list) or any(isinstance(x, (list, dict)) for x in value):
            raise UserError(
                f"{source}: target {i} of {name} is {value!r:.60}; expected a list of labels, or 0 "
                f"or 1 for each."
            )
        rows.append(value)
    width = len(names) if names else max(2, len(rows[0]))
    if all(len(row) == width and all(x in (0, 1) for x in row) for row in rows):
        return names or tuple(map(str, range(width))), np.array(rows, dtype=np.int8)
    kinds = sorted({type(x).__name__ for row in rows for x in row})
    if kinds not in ([], ["int"], ["str"]):
        raise UserError(
            f"{source}: the labels are of the types {', '.join(kinds)}; expected names alone, "
            f"numbers alone, or 0 or 1 for each label in every target."
        )
    known = names or _all_names(next(iter(raw.values())), source)
    found = np.zeros((len(rows), len(known)), np.int8)
    for n, numbers in enumerate(_numbered(raw, known, names is not None, source)):
        if len(set(numbers)) < len(numbers):  # such as 0 and 1 for each label, one too few
            raise UserError(
                f"{source}: the target {rows[n]!r:.60} holds a label twice. Expected labels, each "
                f"once, or 0 or 1 for each of {len(names) if names else 'all'} labels."
            )
        found[n, numbers] = 1
    return known, found


def number_targets(raw: Raw, names: Names | None, source: str) -> tuple[Names, NDArray[np.float32]]:
    """A number each, or as many as there are outputs, `[N, K] float32`."""
    rows: list[list[float]] = []
    for name, i, value in _each(raw):
        row = value if isinstance(value, list) else [value]
        numbers = all(
            isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) <= LARGEST
            for x in row
        )
        wanted = len(rows[0]) if rows else len(names) if names else len(row)
        if not numbers or not row or len(row) != wanted:
            raise UserError(
                f"{source}: target {i} of {name} is {value!r:.60}; expected "
                f"{'a finite number' if wanted <= 1 else f'{wanted} finite numbers'}."
            )
        rows.append(row)
    width = len(rows[0])
    known = names or (("number",) if width == 1 else tuple(f"number {k}" for k in range(width)))
    return known, np.array(rows, dtype=np.float32)


def as_mask(value: Any, names: Names | None, where: str) -> NDArray[np.uint8]:
    """A mask as the user's code gives it, `[H, W]`: a PIL image or a file of one, grey or with a
    palette; or whole numbers `[H, W]` in an array, a tensor or lists, `IGNORED` for no class.

    Args:
        names: of the classes, where they are known.

    Raises:
        UserError: anything else, or a number that is no class.
    """
    if isinstance(value, (str, Path)):
        value = stored(Path(value))
    elif isinstance(value, Image.Image):
        value = numbers_or_colours(value)
    elif hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    found = np.asarray(value)
    if found.ndim == 3 and 1 in (found.shape[0], found.shape[2]):
        found = found[0] if found.shape[0] == 1 else found[..., 0]
    if found.ndim != 2 or not found.size or found.dtype.kind not in "iub":
        raise UserError(
            f"{where} is {list(found.shape)} {found.dtype}; expected whole numbers [height, "
            f"width], or a PIL image of them."
        )
    most = len(names) if names is not None else MOST
    odd = (found != IGNORED) & ((found < 0) | (found >= most))
    if odd.any():
        raise UserError(
            f"{where} holds {int(found[odd][0])}; expected classes from 0 to {most - 1}, and "
            f"{IGNORED} for pixels that do not count."
        )
    return found.astype(np.uint8)


def mask_targets(raw: Raw, names: Names | None, source: str) -> tuple[Names, NDArray[np.int64]]:
    """Masks, which stand in no row: `[N, 0]`. Their classes are checked."""
    highest = 1
    for name, i, value in _each(raw):
        found = as_mask(value, names, f"{source}: target {i} of {name}")
        highest = max(highest, int(found[found != IGNORED].max(initial=0)))
    count = sum(map(len, raw.values()))
    return names or tuple(map(str, range(highest + 1))), np.zeros((count, 0), np.int64)


def is_subset(part: Any) -> bool:
    """As torch's Subset, which random_split gives."""
    return hasattr(part, "dataset") and hasattr(part, "indices")


def listed(part: Any) -> list[Any] | None:
    """The attribute `targets`, so that no image is decoded; None where there is none, or where it
    is not what an item gives."""
    if is_subset(part):
        whole = listed(part.dataset)
        return None if whole is None else [whole[int(i)] for i in part.indices]
    found: Any = getattr(part, "targets", None)
    if getattr(part, "target_transform", None) is not None:
        return None
    if hasattr(found, "tolist"):
        found = found.tolist()
    return list(found) if isinstance(found, Sequence) and not isinstance(found, str) else None


def plain_target(target: Any) -> Any:
    """Arrays, tensors and sets as lists, their numbers as Python's."""
    if hasattr(target, "tolist"):
        return target.tolist()
    if isinstance(target, (set, frozenset)):
        return sorted(map(plain_target, target), key=str)
    return [plain_target(x) for x in target] if isinstance(target, (list, tuple)) else target


def _each(raw: Raw) -> Iterator[tuple[str, int, Any]]:
    for name, values in raw.items():
        for i, value in enumerate(values):
            yield name, i, value


def _all_names(rows: Sequence[Sequence[Any]], source: str) -> Names:
    """The names that occur, in alphabetical order, or the numbers from nought to the largest."""
    values = {x for row in rows for x in row}
    if not values:
        raise UserError(f"{source}: no image has a label, so there are none to learn.")
    if any(isinstance(x, str) for x in values):
        names = tuple(sorted(map(str, values)))
        if odd := [name for name in names if not is_name(name)]:
            raise UserError(f"{source}: the name {odd[0]!r} is not printable; rename it.")
        return names
    if max(values) >= _MOST:
        raise UserError(
            f"{source}: the largest target is {max(values)}; expected numbers of classes from 0 to "
            f"{_MOST - 1:,}."
        )
    return tuple(map(str, range(max(values) + 1)))


def _numbered(raw: Raw, names: Names, named: bool, source: str) -> Iterator[list[int]]:
    """The numbers of each target's classes or labels.

    Args:
        named: the user gives the names; else they are those of the first split.
    """
    place = {name: n for n, name in enumerate(names)}
    first = next(iter(raw))
    for name, i, value in _each(raw):
        row = []
        for x in value if isinstance(value, list) else [value]:
            number = place.get(x, -1) if isinstance(x, str) else x
            if not 0 <= number < len(names):
                known = f"{', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"
                if named or name == first:
                    hint = nearest(x, names) if isinstance(x, str) else ""
                    raise UserError(
                        f"{source}: target {i} of {name} is {x!r:.40}, which is none of the "
                        f"{len(names)} classes {known}.{hint} Numbers start at 0."
                    )
                raise UserError(
                    f"{source}: the classes of {name} and {first} differ: target {i} of {name} is "
                    f"{x!r:.40}, and {first} has {known}. Return `classes` with all of them."
                )
            row.append(number)
        yield row
