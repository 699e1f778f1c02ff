"""Images of one class each: the embedded digits, a folder of class folders, torchvision."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..bundle import IMAGENET, Preprocess
from ..errors import EnvironmentLacks, UserError, nearest, to_install
from .dataset import Dataset
from .folders import open_folder
from .splits import fingerprint, split_by_seed, val_from_train

DIGITS = tuple(str(n) for n in range(10))


def open_classes(source: str, root: str | None, seed: int, download: bool) -> Dataset:
    """Open `digits`, a folder of class folders, or `torchvision:NAME` with `root`, whose missing
    files are fetched where `download` allows it.

    Raises:
        UserError: the source is unknown or its images cannot be used.
        EnvironmentLacks: a package or a download is missing.
    """
    if source == "digits":
        return _digits(seed)
    if source.startswith("torchvision:"):
        return _torchvision(source, root, seed, download)
    folder = Path(source)
    if is_there(folder) and folder.is_dir():
        return open_folder(folder, seed)
    raise UserError(
        f"--data {source!r:.200}: no such folder. Expected digits, a folder of class folders, or "
        f"torchvision:NAME.{nearest(source, ['digits', 'torchvision:'])}"
    )


def is_there(path: Path) -> bool:
    """Whether there is a file or folder of this name; no name is too long or too odd to ask for."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def digits(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], dict[str, NDArray[np.int64]]]:
    """scikit-learn's digits: pixels `[1797, 8, 8] uint8`, labels `[1797]`, and their splits."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise EnvironmentLacks(
            "--data digits needs scikit-learn: pip install scikit-learn."
        ) from None
    found = load_digits()
    pixels = np.rint(found.images * (255 / 16)).astype(np.uint8)
    labels = found.target.astype(np.int64)
    keys = [str(i) for i in range(len(labels))]
    return pixels, labels, split_by_seed(keys, labels, DIGITS, seed)


def _digits(seed: int) -> Dataset:
    pixels, labels, splits = digits(seed)
    digest = hashlib.sha256(pixels.tobytes() + labels.tobytes())
    return Dataset(
        "digits", DIGITS, labels, splits, fingerprint(digest, splits),
        lambda i: Image.fromarray(pixels[i]),
        Preprocess(size=(32, 32), mean=(0.305,) * 3, std=(0.376,) * 3), seed=seed,
    )  # fmt: skip


def _torchvision(source: str, root: str | None, seed: int, download: bool) -> Dataset:
    name = source.partition(":")[2]
    # Some sets make the folder as they are opened.
    if root is not None and not (download or is_there(Path(root))):
        raise EnvironmentLacks(_not_here(name, root))
    try:
        from torchvision import datasets
    except ImportError:
        raise EnvironmentLacks(
            f"--data {source} needs torchvision: {to_install('train')}."
        ) from None
    if name not in datasets.__all__:
        raise UserError(
            f"--data {source}: torchvision has no data set {name!r}."
            + nearest(name, datasets.__all__)
        )
    if root is None:
        raise UserError(f"--data {source}: say with --data-root where the files are or shall go.")
    train, test = (
        _open_torchvision(datasets, name, root, held, download) for held in (False, True)
    )
    counts = len(train), len(test)
    try:
        found = [_label(d, i) for d in (train, test) for i in range(len(d))]
    except (TypeError, ValueError, RuntimeError):
        raise UserError(
            f"--data {source}: its images do not have one class each. Give a classification set."
        ) from None
    labels = np.array(found, dtype=np.int64)
    classes = tuple(str(c) for c in getattr(train, "classes", range(int(labels.max()) + 1)))
    where = np.repeat([0, 1], counts)
    keys = [str(i) for i in range(len(labels))]
    splits = val_from_train(keys, labels, classes, seed, where)
    digest = hashlib.sha256(f"{source}{counts}".encode() + labels.tobytes())

    def image(i: int) -> Image.Image:
        part, number = (train, i) if i < counts[0] else (test, i - counts[0])
        try:
            opened: Image.Image = part[number][0]
        except Exception as error:  # each set reads its files in its own way
            name = "train" if part is train else "test"
            raise UserError(
                f"--data {source}: image {number} of {name} cannot be read ({error}). The files in "
                f"{root} may be incomplete; remove them and download them again."
            ) from None
        return opened

    return Dataset(
        source, classes, labels, splits, fingerprint(digest, splits), image,
        usual_preprocess(image(0)), root, seed,
    )  # fmt: skip


def usual_preprocess(image: Image.Image) -> Preprocess:
    """For a set of images like this one: small ones keep their size, others are as ImageNet's."""
    width, height = image.size
    small = max(width, height) <= 64
    return Preprocess(size=(max(height, 32), max(width, 32))) if small else IMAGENET


def _not_here(name: str, root: str) -> str:
    return (
        f"torchvision:{name}: its files are missing or incomplete in {root}, the folder that the "
        f"bundle records, and a record starts no download. Give --data torchvision:{name} and "
        f"--data-root."
    )


def _open_torchvision(datasets: Any, name: str, root: str, held_out: bool, download: bool) -> Any:
    """torchvision's classes say `train=` or `split=`; the files are used when they are there, and
    where they are not downloaded if that is allowed."""
    kind = getattr(datasets, name)
    choices = ({"train": not held_out}, {"split": "test" if held_out else "train"})
    last: Exception | None = None
    for fetch in (False, True)[: 1 + download]:
        for choice in choices:
            try:
                return kind(root, download=fetch, **choice)
            except TypeError:
                continue
            except ImportError as error:  # some read their labels with scipy or h5py
                raise EnvironmentLacks(f"--data torchvision:{name}: {error}.") from None
            except Exception as error:  # half a download fails in as many ways as there are sets
                last = error
    if last is None:
        raise UserError(
            f"--data torchvision:{name}: this data set has no train and test parts that "
            f"vcompress knows. Export it to class folders and give the folder."
        )
    if not download:
        raise EnvironmentLacks(_not_here(name, root))
    raise EnvironmentLacks(
        f"--data torchvision:{name}: its files are missing or incomplete in {root} and could not "
        f"be downloaded ({type(last).__name__}: {last}). Put the files there whole, after removing "
        f"what is left of an interrupted download, and try again."
    )


def _label(dataset: Any, i: int) -> int:
    for attribute in ("targets", "labels", "_labels"):
        if hasattr(dataset, attribute):
            return int(getattr(dataset, attribute)[i])
    return int(dataset[i][1])
