"""The user's own data, from code: `--data module:factory`.

The factory returns a mapping with `train`, `val` and `test`, each a sequence of (image, target),
such as a `torch.utils.data.Dataset`. What a target is, a task says: it hands `open_own` the
function that reads them. An image is what it is before preprocessing, and is asked for when it is
needed.
"""

from __future__ import annotations

import hashlib
import inspect
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..bundle import Preprocess
from ..config import from_mapping
from ..errors import UserError, nearest
from ..own_code import import_own, raised
from ..text import is_name
from .dataset import IGNORED, Dataset
from .own_targets import Names, ReadTargets, as_mask, is_subset, listed, plain_target
from .preprocess import read_image, size_of, whole_preprocess
from .sources import usual_preprocess
from .splits import SPLITS, fingerprint, val_from_train

SAMPLE = 16
"""Images of each split whose content goes into the fingerprint."""


class Unreadable(UserError):
    """One image, or its file, is damaged; others may not be."""


def open_own(source: str, root: str | None, seed: int, read: ReadTargets) -> Dataset:
    """Call the user's factory and make a data set of what it returns.

    `test` is needed. Without `val`, it is taken from `train` by the seed; without `train` the data
    can be measured on and not trained on. The fingerprint is over the names, the targets, the
    splits, and the content of up to 16 images of each.

    Args:
        source: `module:factory`; it is run.
        root, seed: handed to the factory where its signature has them.

    Raises:
        UserError: no such factory, one that fails, or data that do not fit the task.
    """
    parts, classes, preprocess = _understood(_call(source, root, seed), source)
    raw = {name: _targets(part, name, source) for name, part in parts.items()}
    names, targets = read(raw, classes, source)
    ends = list(accumulate(len(part) for part in parts.values()))
    given = tuple(parts)

    def image(number: int) -> Image.Image:
        part = bisect_right(ends, number)
        name, i = given[part], number - (ends[part - 1] if part else 0)
        return _picture(_item(parts[name], i, name, source)[0], f"{source}: image {i} of {name}")

    splits = _splits(given, ends, names, targets, seed, source)
    digest = hashlib.sha256("\0".join(names).encode() + targets.tobytes())
    for name, part in parts.items():
        sample = _sample(part, name, source)
        for i, (content, _) in sample.items():
            digest.update(f"{name}\0{i}\0".encode() + content)
        items = [plain_target(sample[i][1]) if i in sample else x for i, x in enumerate(raw[name])]
        if items != raw[name]:
            _, again = read({name: items}, names, source)
            _check_alike(targets[_rows(given, ends, name)], again, name, source)
    return Dataset(
        source, names, targets, splits, fingerprint(digest, splits), image,
        preprocess or usual_preprocess(_readable(image, splits["test"])), root, seed,
    )  # fmt: skip


def open_own_masks(source: str, root: str | None, seed: int) -> Dataset:
    """As `open_own`, where the target of an image is its mask, see `own_targets.as_mask`. A mask is
    asked for when it is needed, as an image is. Targets are `[N, 0]`.

    Without `classes`, they are the numbers that the masks of up to 16 images of each split show.

    Raises:
        UserError: no such factory, one that fails, or masks that do not fit their images.
    """
    parts, classes, preprocess = _understood(_call(source, root, seed), source)
    ends, given = list(accumulate(len(part) for part in parts.values())), tuple(parts)

    def item(number: int) -> tuple[Any, Any, str]:
        part = bisect_right(ends, number)
        name, i = given[part], number - (ends[part - 1] if part else 0)
        return *_item(parts[name], i, name, source), f"{source}: image {i} of {name}"

    def image(number: int) -> Image.Image:
        found, _, where = item(number)
        return _picture(found, where)

    def mask(number: int) -> Image.Image:
        found, target, where = item(number)
        size = (
            size_of(Path(found)) if isinstance(found, (str, Path)) else _picture(found, where).size
        )
        read = as_mask(target, names, f"{where}: its mask")
        if (read.shape[1], read.shape[0]) != size:
            raise UserError(
                f"{where}: its mask has {read.shape[1]}x{read.shape[0]} pixels, and the image "
                f"{size[0]}x{size[1]}. Give both in one size."
            )
        return Image.fromarray(read)

    digest, highest = hashlib.sha256("\0".join(classes or ()).encode()), 1
    for name, part in parts.items():
        for i, (content, target) in _sample(part, name, source).items():
            read = as_mask(target, classes, f"{source}: image {i} of {name}: its mask")
            highest = max(highest, int(read[read != IGNORED].max(initial=0)))
            digest.update(f"{name}\0{i}\0".encode() + content + read.tobytes())
    names = classes or tuple(map(str, range(highest + 1)))
    targets = np.zeros((ends[-1], 0), np.int64)
    splits = _splits(given, ends, names, targets, seed, source)
    return Dataset(
        source, names, targets, splits, fingerprint(digest, splits), image,
        preprocess or whole_preprocess(_readable(image, splits["test"]).size), root, seed,
        mask=mask,
    )  # fmt: skip


def _targets(part: Any, name: str, source: str) -> list[Any]:
    """Every target of a split, arrays and sets as lists."""
    found = listed(part)
    if found is None:
        found = [_item(part, i, name, source)[1] for i in range(len(part))]
    elif len(found) != len(part):
        raise UserError(
            f"{source}: {name} has {len(part)} images, and its attribute `targets` {len(found)}. "
            f"Give one for each image."
        )
    return [plain_target(target) for target in found]


def _readable(image: Callable[[int], Image.Image], numbers: NDArray[np.int64]) -> Image.Image:
    for number in numbers[: SAMPLE - 1]:
        with suppress(UserError):
            return image(int(number))
    return image(int(numbers[-1]))


def _call(source: str, root: str | None, seed: int) -> Any:
    factory = import_own(source)
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except ValueError:
        parameters = []
    offered = {"seed": seed, "root": root}
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters)
    known = {p.name for p in parameters}
    for p in parameters:
        fixed = p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) or p.default is not p.empty
        if not fixed and p.name not in offered:
            raise UserError(
                f"{source}: it wants an argument {p.name!r}. Only seed and root (--data-root) are "
                f"handed over; give the others a default."
            )
    try:
        return factory(**{k: v for k, v in offered.items() if any_name or k in known})
    except Exception as error:
        raise UserError(f"{source} failed with {raised(error, source)}.") from error


def _understood(
    returned: Any, source: str
) -> tuple[dict[str, Any], Names | None, Preprocess | None]:
    """The splits that are there, in their order, the classes, and the preprocessing."""
    if not isinstance(returned, Mapping):
        raise UserError(
            f"{source} returned {_kind(returned)}; expected a mapping with train, val and test."
        )
    known = (*SPLITS, "classes", "preprocess")
    for key in returned:
        if key not in known:
            raise UserError(
                f"{source} returned an unknown key {key!r:.40}.{nearest(str(key), known)} Expected "
                f"{', '.join(known)}."
            )
    parts = {name: returned[name] for name in SPLITS if returned.get(name) is not None}
    if "test" not in parts:
        raise UserError(
            f"{source} returned {', '.join(parts) or 'no split'} without test. Accuracy is "
            f"measured on test alone: return images there that are not trained on."
        )
    for name, part in parts.items():
        if not hasattr(part, "__len__") or not hasattr(part, "__getitem__"):
            raise UserError(
                f"{source}: {name} is {_kind(part)}; expected a sequence of (image, target) with "
                f"len() and [number], such as a list or a torch Dataset. Of a loader give its "
                f".dataset."
            )
        if isinstance(part, (str, bytes, Mapping)):
            raise UserError(
                f"{source}: {name} is {_kind(part)}; expected a sequence of (image, target)."
            )
        try:
            count = len(part)
        except Exception as error:
            said = raised(error, source)
            raise UserError(f"{source}: len() of {name} failed with {said}.") from error
        if not count:
            raise UserError(
                f"{source}: {name} is empty. Give it images, or leave it out"
                f"{' (val is then taken from train)' if name == 'val' else ''}."
            )
    return parts, _classes(returned, parts, source), _preprocess(returned, source)


def _classes(returned: Mapping[str, Any], parts: Mapping[str, Any], source: str) -> Names | None:
    """What the mapping names, else what the splits name, which must agree."""
    given = returned.get("classes")
    if given is None:
        found = {name: own for name, part in parts.items() if (own := _named(part)) is not None}
        first = next(iter(found), None)
        for name, other in found.items():
            if first is not None and other != found[first]:
                odd = sorted(set(other) ^ set(found[first])) or ["their order"]
                raise UserError(
                    f"{source}: the classes of {name} and {first} differ ({', '.join(odd[:5])}). "
                    f"Give all splits the same, or return `classes`."
                )
        given = found[first] if first is not None else None
    if given is None:
        return None
    names = plain_target(given)
    if not isinstance(names, list) or not names or not all(map(is_name, names)):
        raise UserError(f"{source}: classes = {given!r:.60}; expected printable names.")
    if len(set(names)) != len(names):
        doubled = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{source}: the class {doubled!r} stands twice in `classes`; rename one.")
    return tuple(names)


def _named(part: Any) -> Names | None:
    """The attribute `classes` of torchvision's data sets, also through a Subset."""
    names = getattr(_whole(part), "classes", None)
    if isinstance(names, (list, tuple)) and names and all(isinstance(n, str) for n in names):
        return tuple(names)
    return None


def _preprocess(returned: Mapping[str, Any], source: str) -> Preprocess | None:
    given = returned.get("preprocess")
    if given is None or isinstance(given, Preprocess):
        return given
    return from_mapping(Preprocess, given, f"{source}, preprocess")


def _whole(part: Any) -> Any:
    while is_subset(part):
        part = part.dataset
    return part


def _item(part: Any, i: int, name: str, source: str) -> tuple[Any, Any]:
    where = f"{source}: item {i} of {name}"
    try:
        item = part[i]
    except Exception as error:
        raise Unreadable(f"{where} failed with {raised(error, source)}.") from error
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        held = f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
        raise UserError(f"{where} is {_kind(item)}{held}; expected a pair (image, target).")
    return item[0], item[1]


def _picture(value: Any, where: str) -> Image.Image:
    """What the user's code gives for an image, as one."""
    if isinstance(value, Image.Image):
        try:
            value.load()
        except Exception as error:  # Pillow's decoders raise many kinds on a damaged file
            raise Unreadable(f"{where} cannot be read ({error}). Repair or remove it.") from None
        return value
    if isinstance(value, (str, Path)):
        return read_image(Path(value))
    array, shape = value, "[H, W, 3] or [H, W]"
    if hasattr(value, "detach"):  # a tensor, as torchvision's functions take and give them
        array, shape = value.detach().cpu().numpy(), "[3, H, W] or [1, H, W]"
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
    if not isinstance(array, np.ndarray):
        raise UserError(
            f"{where} is {_kind(value)}; expected a PIL image, a path, or a uint8 array {shape}."
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    colours = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype != np.uint8 or not colours or not array.size:
        raise UserError(
            f"{where} is {_kind(value)} {list(value.shape)} {value.dtype}; expected a PIL image, a "
            f"path, or uint8 {shape}, as it is before preprocessing: leave ToTensor and Normalize "
            f"out."
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _content(value: Any, where: str) -> bytes:
    """SHA-256 of what makes an image this one: the bytes of its file, or its pixels."""
    if isinstance(value, (str, Path)):
        try:
            return hashlib.sha256(Path(value).read_bytes()).digest()
        except OSError as error:
            raise Unreadable(f"{value}: {error.strerror}.") from None
    image = _picture(value, where)
    return hashlib.sha256(f"{image.mode} {image.size}\0".encode() + image.tobytes()).digest()


def _sample(part: Any, name: str, source: str) -> dict[int, tuple[bytes, Any]]:
    """Content and target of up to 16 images of a split, evenly over it, by number. One that cannot
    be read is left out: whoever needs it says so.

    Raises:
        UserError: an image is not the same twice, so it is augmented: then nothing that is measured
            on it can be measured again.
    """
    found = {}
    for i in np.linspace(0, len(part) - 1, min(len(part), SAMPLE)).astype(int).tolist():
        where = f"{source}: image {i} of {name}"
        with suppress(Unreadable):
            first, again = (_item(part, i, name, source) for _ in range(2))
            content = _content(first[0], where)
            if content != _content(again[0], where):
                raise UserError(
                    f"{where} is another one each time. Leave random transforms out; --augment "
                    f"chooses those of training."
                )
            found[i] = content, first[1]
    return found


def _check_alike(listed: NDArray[Any], items: NDArray[Any], name: str, source: str) -> None:
    """Raise a UserError where the attribute `targets` says something else than the items."""
    for i, (one, other) in enumerate(zip(listed, items, strict=True)):
        if not np.allclose(one, other, rtol=1e-5, atol=1e-8):
            raise UserError(
                f"{source}: target {i} of {name} is {other.tolist()} in its item and "
                f"{one.tolist()} in the attribute `targets`. Make them agree, or remove the "
                f"attribute."
            )


def _rows(given: Names, ends: Sequence[int], name: str) -> slice:
    part = given.index(name)
    return slice(ends[part - 1] if part else 0, ends[part])


def _splits(
    given: Names, ends: Sequence[int], names: Names, targets: NDArray[Any], seed: int, source: str
) -> dict[str, NDArray[np.int64]]:
    """As the user divides the images; `val` from `train` by the seed where there is none, of each
    class its share."""
    if targets.ndim == 1 and "train" in given:
        counts = np.bincount(targets[: ends[0]], minlength=len(names))
        if not counts.all():
            raise UserError(
                f"{source}: the class {names[int(counts.argmin())]!r} has no image in train. Add "
                f"images, or take it out of the classes."
            )
    if given == ("train", "test"):
        where = (np.arange(ends[-1]) >= ends[0]).astype(np.int64)
        keys = [str(i) for i in range(ends[-1])]
        if targets.ndim == 1:
            return val_from_train(keys, targets, names, seed, where)
        return val_from_train(keys, np.zeros(ends[-1], np.int64), ("all",), seed, where)
    everything = np.arange(ends[-1])
    none = np.zeros(0, np.int64)
    return {s: everything[_rows(given, ends, s)] if s in given else none for s in SPLITS}


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" if value is not None else "None"
