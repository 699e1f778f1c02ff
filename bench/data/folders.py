"""A folder of images: a folder for each class, or those inside folders for the splits."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..bundle import IMAGENET
from ..errors import UserError
from ..text import is_name
from .dataset import Dataset
from .preprocess import read_image
from .splits import PATH, SPLITS, drawn_by_seed, fingerprint, val_from_train, without_overlap

SUFFIXES = frozenset([
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".webp", ".tif", ".tiff",
    ".gif", ".jp2", ".j2k", ".jpf", ".jpx", ".avif", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".qoi",
])  # fmt: skip
"""Files that hold one picture, among those that Pillow reads."""
_NO_DATA = frozenset(
    ["__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found",
     "thumbs.db", "desktop.ini"]
)  # fmt: skip
"""What systems and file servers put beside the user's files; so do names with a dot in front."""
WORDS = {
    "train": "train", "training": "train", "trainset": "train",
    "val": "val", "valid": "val", "validation": "val", "valset": "val",
    "test": "test", "testing": "test", "testset": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What lies in a folder, at any depth; hidden files are not there."""

    images: tuple[Path, ...]
    """By name."""
    left_out: Counter[str]
    """How many of what kind are no images: `.heic`, `broken links`, `linked folders`."""


def find_images(folder: Path) -> Found:
    """The images in `folder`. A linked folder inside it is not entered: links may go in circles."""
    images: list[Path] = []
    left_out: Counter[str] = Counter()
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not _hidden(name)]
        left_out["linked folders"] += sum((Path(here) / name).is_symlink() for name in folders)
        for name in files:
            path = Path(here) / name
            if _hidden(name):
                continue
            if path.suffix.lower() not in SUFFIXES:
                left_out[path.suffix.lower() or "files without a suffix"] += 1
            elif not path.is_file():
                left_out["broken links"] += 1
            else:
                images.append(path)
    return Found(tuple(sorted(images)), +left_out)


def open_folder(folder: Path, seed: int) -> Dataset:
    """Class folders, or folders for the splits with class folders in each.

    The names of splits are the usual ones in any case: train or training, val, valid or validation,
    test, alone or with other words (`seg_train`). Where only one of val and test is there, it is
    what is measured on, and the validation images that choose the best epoch are taken from train
    by the seed. Without train the images are good for measuring alone.

    Raises:
        UserError: folders that are no classes, or whose splits differ in their classes.
    """
    found = _split_folders(folder)
    roots = list(found.values()) or [folder]
    classes = _class_folders(roots[0])
    paths: list[Path] = []
    labels: list[int] = []
    places: list[int] = []
    left_out: Counter[str] = Counter()
    for place, root in enumerate(roots):
        here = _class_folders(root)
        if here.keys() != classes.keys():
            odd = sorted(here.keys() ^ classes.keys())
            raise UserError(
                f"{root} and {roots[0]} have different class folders ({', '.join(odd[:5])}). "
                f"Give every class a folder in each."
            )
        for number, name in enumerate(classes):
            inside = find_images(here[name])
            left_out += inside.left_out
            if not inside.images:
                raise UserError(
                    f"{here[name]}: no images in this class folder"
                    f"{said(inside.left_out, ' (there are ', ')')}. Add images or remove it."
                )
            paths += inside.images
            labels += [number] * len(inside.images)
            places += [place] * len(inside.images)
    names = tuple(path.name for path in classes.values())
    targets = np.array(labels, dtype=np.int64)
    keys = [p.relative_to(folder).as_posix() for p in paths]
    sizes = [path.stat().st_size for path in paths]
    where = np.array(places)
    undivided = ""
    left_out["folders beside the splits"] += len(set(_folders(folder)) - set(roots)) if found else 0
    if not found:
        splits, undivided = drawn_by_seed(keys, targets, names, seed, paths, sizes)
    else:
        given = [top.name for top in roots]
        if list(found) == ["train", "test"]:
            splits = val_from_train(keys, targets, names, seed, where)
        else:
            order = list(found)
            splits = {
                name: np.flatnonzero(where == (order.index(name) if name in order else -1))
                for name in SPLITS
            }
        splits = without_overlap(splits, paths, sizes, where, given)
    digest = hashlib.sha256()
    for key, size, label in zip(keys, sizes, labels, strict=True):
        digest.update(f"{key}\0{size}\0{label}\n".encode(*PATH))
    return Dataset(
        str(folder), names, targets, splits, fingerprint(digest, splits),
        lambda i: read_image(paths[i]), IMAGENET, seed=seed, drawn=not found, undivided=undivided,
        left_out=said(+left_out, f"{folder}: left out: "),
    )  # fmt: skip


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _NO_DATA


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not _hidden(p.name) and p.is_dir())


def _split_of(name: str) -> str | None:
    """The split that a folder's name means: the one word of a split in it."""
    words = re.split(r"[^a-z]+", name.casefold())
    found = {WORDS[word] for word in words if word in WORDS}
    return found.pop() if len(found) == 1 else None


def _split_folders(folder: Path) -> dict[str, Path]:
    """The folder of each split, in the order of `SPLITS`; the one that is measured on is `test`.
    Empty where the folders are classes, one of which may be called train: it holds images itself.
    """
    tops = [top for top in _folders(folder) if _split_of(top.name)]
    if not any(_folders(top) for top in tops):
        _check_classes(folder)
        return {}
    found: dict[str, Path] = {}
    for top in tops:
        name = _split_of(top.name)
        assert name is not None
        if not _folders(top):
            raise UserError(
                f"{top}: no class folders in it, as there are in the folders beside it. Sort its "
                f"images into class folders, or move it elsewhere."
            )
        if name in found:
            raise UserError(
                f"{folder}: {found[name].name}/ and {top.name}/ both mean {name}. Keep one of them."
            )
        found[name] = top
    if list(found) == ["train"]:
        raise UserError(
            f"{folder}: found {found['train'].name}/ alone, and nothing to measure on. Add val/ or "
            f"test/ with the same class folders, or give {found['train']}, which the seed divides."
        )
    if "test" not in found:
        found["test"] = found.pop("val")
    return {name: found[name] for name in SPLITS if name in found}


def _check_classes(folder: Path) -> None:
    """Raise a UserError where folders are parts of the data under names of their own: in all of
    them stand the same folders, and no images."""
    tops = _folders(folder)
    inside: list[set[str]] = []
    for top in tops:
        names = _names_of_folders(top)
        if names is None or len(names) < 2 or (inside and names != inside[0]):
            return
        inside.append(names)
    if len(tops) > 1:
        raise UserError(
            f"{folder}: {', '.join(top.name for top in tops[:3])} hold the same folders "
            f"({', '.join(sorted(inside[0])[:3])}), so they look like parts of the data and not "
            f"like classes. Call parts train, val and test, or give one of them; put the images of "
            f"a class into one folder."
        )


def _names_of_folders(folder: Path) -> set[str] | None:
    """None where there are images beside them, which is soon seen."""
    names: set[str] = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            if _hidden(entry.name):
                continue
            if entry.is_dir():
                names.add(entry.name)
            elif Path(entry.name).suffix.lower() in SUFFIXES:
                return None
    return names


def _class_folders(folder: Path) -> dict[str, Path]:
    """By name, in composed characters: macOS writes the same name in decomposed ones."""
    found: dict[str, Path] = {}
    for path in _folders(folder):
        if not is_name(path.name):  # a label is shown, and stands in JSON and HTML
            raise UserError(f"{folder}: the folder name {path.name!r} is not printable; rename it.")
        name = unicodedata.normalize("NFC", path.name)
        if name in found:
            raise UserError(
                f"{folder}: two folders are called {name}, in composed and in decomposed "
                f"characters. Move the images of one into the other."
            )
        found[name] = path
    if len(found) < 2:
        raise UserError(
            f"{folder}: found {len(found)} class folders; expected one folder for each of at least "
            f"two classes, with the images inside."
        )
    return found


def said(left_out: Counter[str], before: str, after: str = "") -> str:
    """`left out: .heic (2), broken links (1)`; empty where nothing was."""
    kinds = ", ".join(f"{kind} ({count:,})" for kind, count in sorted(left_out.items()))
    return f"{before}{kinds}{after}" if kinds else ""
