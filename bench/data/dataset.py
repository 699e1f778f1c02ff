"""Labelled images from one of three sources, with splits that a seed fixes for good.

Training and measuring list their images here, so both mean the same thing by "held out".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..bundle import IMAGENET, Preprocess
from ..errors import EnvironmentLacks, UserError, nearest
from .duplicates import repeated_across
from .preprocess import apply, read_image

SPLITS = ("train", "val", "test")
OnBadImage = Literal["fail", "skip"]
TEST_SHARE, VAL_SHARE = 0.2, 0.1
_PATH = "utf-8", "surrogateescape"  # a file name may hold any bytes
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}


@dataclass(frozen=True)
class Dataset:
    """Images with labels. `val` chooses the best epoch; `test` is only ever measured on."""

    source: str
    classes: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    splits: Mapping[str, npt.NDArray[np.int64]]
    fingerprint: str
    """SHA-256 over the keys, sizes and labels of the images and over the splits."""
    image: Callable[[int], Image.Image]
    """Image number i, decoded."""
    default_preprocess: Preprocess
    root: str | None = None
    seed: int = 0
    on_bad_image: OnBadImage = "fail"
    """What to do with an image that cannot be read."""
    bad_images: dict[int, str] = field(default_factory=dict, compare=False)
    """Number to message of the images that were skipped so far."""

    def record(self) -> dict[str, Any]:
        """What a bundle's manifest keeps of it."""
        skips = {} if self.on_bad_image == "fail" else {"on_bad_image": self.on_bad_image}
        return {
            "source": self.source,
            "root": self.root,
            "seed": self.seed,
            "fingerprint": self.fingerprint,
            "splits": {name: len(indices) for name, indices in self.splits.items()},
            **skips,
        }

    def values(self, i: int, preprocess: Preprocess) -> npt.NDArray[np.float32] | None:
        """Image number i as the network's input, `[C, H, W] float32`; None where it cannot be read
        and such images are skipped.

        Raises:
            UserError: it cannot be read, and such images are not skipped.
        """
        try:
            return apply(preprocess, self.image(i))
        except UserError as error:
            if self.on_bad_image == "fail":
                raise
            self.bad_images[i] = str(error)
            return None


def open_dataset(
    source: str, root: str | None = None, seed: int = 0, on_bad_image: OnBadImage = "fail"
) -> Dataset:
    """Open `digits`, a folder of class folders, or `torchvision:NAME` with `root`.

    Raises:
        UserError: the source is unknown or its images cannot be used.
        EnvironmentLacks: a package or a download is missing.
    """
    return replace(_open(source, root, seed), on_bad_image=on_bad_image)


def _open(source: str, root: str | None, seed: int) -> Dataset:
    if source == "digits":
        return _digits(seed)
    if source.startswith("torchvision:"):
        return _torchvision(source, root, seed)
    folder = Path(source)
    if folder.is_dir():
        return _folder(folder, seed)
    raise UserError(
        f"--data {source!r}: no such folder. Expected digits, a folder of class folders, or "
        f"torchvision:NAME.{nearest(source, ['digits', 'torchvision:'])}"
    )


def batches(
    dataset: Dataset, split: str, preprocess: Preprocess, batch_size: int
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
    """Batches `[B, C, H, W] float32` with labels `[B] int64`, in order, the last one shorter.
    Images that are skipped leave their batch shorter."""
    yield from batches_of(dataset, dataset.splits[split], preprocess, batch_size)


def batches_of(
    dataset: Dataset, indices: npt.NDArray[np.int64], preprocess: Preprocess, batch_size: int
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
    """As `batches`, of some images of the data set."""
    for start in range(0, len(indices), batch_size):
        chosen = indices[start : start + batch_size]
        found = [(dataset.values(int(i), preprocess), dataset.labels[i]) for i in chosen]
        images = [(values, label) for values, label in found if values is not None]
        if images:
            yield np.stack([v for v, _ in images]), np.array([x for _, x in images], np.int64)


def image_files(folder: Path) -> list[Path]:
    """The images in `folder`, at any depth, by name."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())


def split_by_seed(
    keys: Sequence[str], labels: npt.NDArray[np.int64], classes: Sequence[str], seed: int,
    test: float = TEST_SHARE, val: float = VAL_SHARE,
) -> dict[str, npt.NDArray[np.int64]]:  # fmt: skip
    """Stratified splits. Each class is ordered by the hash of seed and key: the same on every
    machine and version, and an added image moves no other one but at the borders."""
    parts: dict[str, list[int]] = {name: [] for name in SPLITS}
    needed = 1 + (test > 0) + (val > 0)
    for number, name in enumerate(classes):
        members = np.flatnonzero(labels == number).tolist()
        if len(members) < needed:
            raise UserError(
                f"class {name!r} has {len(members)} images; a split needs at least {needed}. "
                f"Add images or remove the class."
            )
        members.sort(key=lambda i: hashlib.sha256(f"{seed}/{keys[i]}".encode(*_PATH)).digest())
        tests = max(1, round(test * len(members))) if test else 0
        vals = max(1, round(val * len(members))) if val else 0
        parts["test"] += members[:tests]
        parts["val"] += members[tests : tests + vals]
        parts["train"] += members[tests + vals :]
    return {name: np.array(sorted(part), dtype=np.int64) for name, part in parts.items()}


def _digits(seed: int) -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise EnvironmentLacks(
            "--data digits needs scikit-learn: pip install scikit-learn."
        ) from None
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    classes = tuple(str(n) for n in range(10))
    keys = [str(i) for i in range(len(labels))]
    splits = split_by_seed(keys, labels, classes, seed)
    digest = hashlib.sha256(pixels.tobytes() + labels.tobytes())
    return Dataset(
        "digits", classes, labels, splits, _fingerprint(digest, splits),
        lambda i: Image.fromarray(pixels[i]),
        Preprocess(size=(32, 32), mean=(0.305,) * 3, std=(0.376,) * 3), seed=seed,
    )  # fmt: skip


def _folder(folder: Path, seed: int) -> Dataset:
    """Class folders, or `train/` and `val/` (and `test/`) with class folders in each.

    With only `train/` and `val/`, `val/` is what is measured on, and the validation images that
    choose the best epoch are taken from `train/` by the seed.
    """
    given = [name for name in SPLITS if (folder / name).is_dir()]
    if given and not {"train", "val"} <= set(given):
        raise UserError(
            f"{folder}: found {', '.join(given)}/ but not both train/ and val/. "
            f"Give both, or class folders alone."
        )
    roots = [folder / name for name in given] or [folder]
    classes = _class_names(roots[0])
    paths: list[Path] = []
    labels: list[int] = []
    places: list[int] = []
    for place, top in enumerate(roots):
        here = _class_names(top)
        if here != classes:
            odd = sorted(set(here) ^ set(classes))
            raise UserError(
                f"{top} and {roots[0]} have different class folders ({', '.join(odd[:5])}). "
                f"Give every class a folder in each."
            )
        for number, name in enumerate(classes):
            files = image_files(top / name)
            if not files:
                raise UserError(
                    f"{top / name}: no images in this class folder. Add images or remove it."
                )
            paths += files
            labels += [number] * len(files)
            places += [place] * len(files)
    targets = np.array(labels, dtype=np.int64)
    keys = [p.relative_to(folder).as_posix() for p in paths]
    where = np.array(places)
    if not given:
        splits = split_by_seed(keys, targets, classes, seed)
    elif len(given) == len(SPLITS):
        splits = {name: np.flatnonzero(where == n) for n, name in enumerate(SPLITS)}
    else:
        splits = _val_from_train(keys, targets, classes, seed, where)
    sizes = [path.stat().st_size for path in paths]
    splits = _without_overlap(splits, paths, sizes, where, given)
    digest = hashlib.sha256()
    for key, size, label in zip(keys, sizes, labels, strict=True):
        digest.update(f"{key}\0{size}\0{label}\n".encode(*_PATH))
    return Dataset(
        str(folder), classes, targets, splits, _fingerprint(digest, splits),
        lambda i: read_image(paths[i]), IMAGENET, seed=seed,
    )  # fmt: skip


def _val_from_train(
    keys: Sequence[str], labels: npt.NDArray[np.int64], classes: Sequence[str], seed: int,
    where: npt.NDArray[Any],
) -> dict[str, npt.NDArray[np.int64]]:  # fmt: skip
    train = np.flatnonzero(where == 0)
    inner = split_by_seed([keys[int(i)] for i in train], labels[train], classes, seed, test=0)
    return {
        "train": train[inner["train"]],
        "val": train[inner["val"]],
        "test": np.flatnonzero(where == 1),
    }


def _without_overlap(
    splits: dict[str, npt.NDArray[np.int64]], paths: Sequence[Path], sizes: Sequence[int],
    where: npt.NDArray[Any], given: Sequence[str],
) -> dict[str, npt.NDArray[np.int64]]:  # fmt: skip
    """No image may be trained on and measured on. Copies that the seed has spread over the splits
    all go to `train`; copies in folders that the user has divided are refused."""
    part = np.zeros(len(paths), dtype=np.int64)
    for number, name in enumerate(SPLITS):
        part[splits[name]] = number
    groups = repeated_across(paths, sizes, part.tolist())
    if not groups:
        return splits
    for group in groups:
        one, other = group[0], next((i for i in group if where[i] != where[group[0]]), None)
        if other is not None:
            raise UserError(
                f"{paths[one]} and {paths[other]} hold the same bytes: {given[where[one]]}/ and "
                f"{given[where[other]]}/ overlap, so accuracy would be measured on images that "
                f"were trained on. Remove the copies ({len(groups):,} images are there twice)."
            )
    part[[i for group in groups for i in group]] = 0
    found = {name: np.flatnonzero(part == number) for number, name in enumerate(SPLITS)}
    for name in SPLITS:
        if not len(found[name]):
            first, copy = (paths[i] for i in groups[0][:2])
            raise UserError(
                f"Nothing is left for {name}: {len(groups):,} images are there more than once, "
                f"such as {first} and {copy}. Remove the copies."
            )
    return found


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(
        sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    )
    if len(names) < 2:
        raise UserError(
            f"{folder}: found {len(names)} class folders; expected one folder for each of at least "
            f"two classes, with the images inside."
        )
    for name in names:
        if not name.isprintable():  # a label is shown, and stands in JSON and HTML
            raise UserError(f"{folder}: the folder name {name!r} is not printable; rename it.")
    return names


def _torchvision(source: str, root: str | None, seed: int) -> Dataset:
    try:
        from torchvision import datasets
    except ImportError:
        raise EnvironmentLacks(
            f"--data {source} needs torchvision: pip install 'vision-compress[train]'."
        ) from None
    name = source.partition(":")[2]
    if name not in datasets.__all__:
        raise UserError(
            f"--data {source}: torchvision has no data set {name!r}."
            + nearest(name, datasets.__all__)
        )
    if root is None:
        raise UserError(f"--data {source}: say with --data-root where the files are or shall go.")
    train, test = (_open_torchvision(datasets, name, root, held) for held in (False, True))
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
    splits = _val_from_train(keys, labels, classes, seed, where)
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

    width, height = image(0).size
    small = max(width, height) <= 64
    preprocess = Preprocess(size=(max(height, 32), max(width, 32))) if small else IMAGENET
    return Dataset(
        source, classes, labels, splits, _fingerprint(digest, splits), image, preprocess, root, seed
    )


def _open_torchvision(datasets: Any, name: str, root: str, held_out: bool) -> Any:
    """torchvision's classes say `train=` or `split=`; the files are used when they are there and
    downloaded when they are not."""
    kind = getattr(datasets, name)
    choices = ({"train": not held_out}, {"split": "test" if held_out else "train"})
    last: Exception | None = None
    for download in (False, True):
        for choice in choices:
            try:
                return kind(root, download=download, **choice)
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


def _fingerprint(digest: Any, splits: Mapping[str, npt.NDArray[np.int64]]) -> str:
    for name in SPLITS:
        digest.update(name.encode() + splits[name].astype("<i8").tobytes())
    return str(digest.hexdigest())
