"""Classes of data as the outputs of a network, which may have more, or in another order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import EnvironmentLacks, UserError
from .dataset import IGNORED, Dataset

IMAGENET_1K = "imagenet"
"""In place of a file: the classes of ImageNet-1k."""


def read_classes(path: Path) -> tuple[str, ...]:
    """Names of a network's outputs, in order: a line each of a text file, or those of ImageNet-1k
    where `path` is the word imagenet.

    Raises:
        UserError: a file that cannot be read, or with a name that stands there twice.
    """
    if str(path) == IMAGENET_1K and not path.is_file():
        return imagenet_classes()
    names = read_names(path, "--classes")
    if len(set(names)) < len(names):
        raise UserError(f"--classes {path}: a name stands there twice. Give each output its own.")
    return names


def read_names(path: Path, flag: str) -> tuple[str, ...]:
    """The lines of a text file that are not empty. `flag` names it in messages.

    Raises:
        UserError: it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{flag} {path}: cannot be read ({error}).") from None
    return tuple(line.strip() for line in lines if line.strip())


def imagenet_classes() -> tuple[str, ...]:
    """The 1,000 classes of ImageNet-1k in their usual order, that of sorted wnids:
    `n01440764 tench, Tinca tinca`. timm's files are read, and timm is not imported.

    Raises:
        EnvironmentLacks: timm is not installed.
    """
    found = find_spec("timm")
    if found is None or found.origin is None:
        raise EnvironmentLacks(
            "The order of ImageNet's classes is read from timm: pip install timm, or give "
            "--classes FILE with a line for each output, such as n01440764 tench."
        )
    folder = Path(found.origin).parent / "data" / "_info"
    wnids = (folder / "imagenet_synsets.txt").read_text(encoding="utf-8").split()
    lines = (folder / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
    lemmas = dict(line.split("\t", 1) for line in lines if "\t" in line)
    return tuple(f"{wnid} {lemmas[wnid]}" for wnid in wnids)


def find_outputs(
    classes: Sequence[str], names: Sequence[str], numbers: bool = False
) -> tuple[int | None, ...]:
    """The output of each class of the data; None where it is not found.

    A class is found by the whole name of the output; by its first word, n01440764 of
    "n01440764 tench, Tinca tinca"; by what follows that, or by the part of either before the first
    comma, where only one output has it.

    Args:
        numbers: whether classes that are all whole numbers may be numbers of outputs, from 0.
    """
    known = _keys(names)
    found = tuple(known.get(name) for name in classes)
    if numbers and None in found and all(c.isascii() and c.isdecimal() for c in classes):
        return tuple(int(c) if int(c) < len(names) else None for c in classes)
    return found


def _keys(names: Sequence[str]) -> Mapping[str, int]:
    """Output by what a class may be called; whole names count before parts of other names."""
    parts: list[tuple[str, int]] = []
    for number, name in enumerate(names):
        first, _, rest = name.partition(" ")
        keys = {first.rstrip(","), name.partition(",")[0], rest, rest.partition(",")[0]} - {""}
        parts += [(key, number) for key in keys]
    often = Counter(key for key, _ in parts)
    whole = Counter(names)
    found = {key: number for key, number in parts if often[key] == 1}
    return found | {name: number for number, name in enumerate(names) if whole[name] == 1}


def with_outputs(
    dataset: Dataset, names: Sequence[str], where: str, numbers: bool = False
) -> Dataset:
    """The data set with the classes `names`, and each target, or pixel of a mask, the number of its
    class among them.
    The images, their splits and the fingerprint stay.

    Args:
        names: of the network's outputs, in order.
        where: what has these outputs, in messages.
        numbers: see `find_outputs`.

    Raises:
        UserError: a class of the data is none of the outputs, or two are the same one.
    """
    if dataset.classes == tuple(names):
        return dataset
    found = find_outputs(dataset.classes, names, numbers)
    missing = [c for c, number in zip(dataset.classes, found, strict=True) if number is None]
    if missing:
        raise UserError(
            f"{where}: its classes are {some(names)}, and {len(missing):,} of those of "
            f"{dataset.source} are none of them: {some(missing)}. Give the data that the network "
            "was trained for, or --classes FILE with a line for each output, in order."
        )
    numbered = np.array(found, dtype=np.int64)
    if len(set(found)) < len(found):
        twice = next(n for n, count in Counter(found).items() if count > 1)
        same = [c for c, number in zip(dataset.classes, found, strict=True) if number == twice]
        raise UserError(
            f"{where}: {' and '.join(same[:2])} of {dataset.source} are one output. Put the images "
            "of a class into one folder."
        )
    called = None in find_outputs(dataset.classes, names)
    if dataset.mask is None:
        targets = numbered[dataset.targets]
        return replace(dataset, classes=tuple(names), targets=targets, numbered=called)
    return replace(
        dataset, classes=tuple(names), mask=_renumbered(dataset.mask, numbered), numbered=called
    )


def _renumbered(
    mask: Callable[[int], Image.Image], numbers: NDArray[np.int64]
) -> Callable[[int], Image.Image]:
    """The masks with the number of the output for that of the class."""
    table = np.full(256, IGNORED, np.uint8)
    table[: len(numbers)] = numbers
    return lambda i: Image.fromarray(table[np.asarray(mask(i))])


def named_outputs(dataset: Dataset, path: Path) -> Dataset:
    """The data set with the classes of `--classes path`; its folders may be called by numbers.

    Raises:
        UserError: see `read_classes` and `with_outputs`; or targets that are no classes.
    """
    if dataset.task != "classification" and dataset.mask is None:
        raise UserError(f"--classes names classes of images or pixels: a {dataset.task} has none.")
    return with_outputs(dataset, read_classes(path), f"--classes {path}", numbers=True)


def fits(dataset: Dataset, names: Sequence[str], numbers: bool = False) -> bool:
    """Whether `with_outputs` finds an output of its own for every class of the data."""
    found = find_outputs(dataset.classes, names, numbers)
    return None not in found and len(set(found)) == len(found)


def some(names: Sequence[str]) -> str:
    """The first four of many names, and how many there are."""
    return ", ".join(names[:4]) + (f"... ({len(names):,})" if len(names) > 4 else "")
