"""Which mask belongs to which image, and which split both are in, by their names.

Folders of images and of masks have their usual names, the splits stand above or below them or in
list files. A mask has the name of its image, with a usual ending or without: `x.jpg`, `x_mask.png`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from ..errors import UserError
from .folders import WORDS, find_images
from .splits import SPLITS

MASKS = frozenset([
    "mask", "masks", "label", "labels", "annotation", "annotations", "annot", "annots", "gt",
    "gtfine", "gtcoarse", "groundtruth", "segmentation", "segmentations", "seg", "segs", "trimaps",
    "segmentationclass", "segmentationclassaug", "segmentationclassraw", "segmentationclasspng",
    "target", "targets",
    "labelids", "labeltrainids",
])  # fmt: skip
"""Words in the names of folders that hold masks."""
IMAGES = frozenset([
    "image", "images", "img", "imgs", "jpegimages", "leftimg8bit", "photo", "photos", "picture",
    "pictures", "rgb", "input", "inputs",
])  # fmt: skip
_NEITHER = frozenset(["segmentationobject", "instances", "panoptic", "depth", "preview"])
_MASK_ENDING = re.compile(
    r"[_\-. ]+(gt(fine|coarse)[_-])?(masks?|labels?|l|p|gt|seg|segmentation|annotation|matte|"
    r"ground_?truth|labelids|labeltrainids)$", re.IGNORECASE,
)  # fmt: skip
_IMAGE_ENDING = re.compile(r"[_\-. ]+(leftimg8bit|image|img|rgb|sat)$", re.IGNORECASE)
_OTHER_FORM = re.compile(r"_(color|colour|instanceids?|instances?|polygons)$", re.IGNORECASE)
"""What lies beside the masks and shows the same in another form."""
_BESIDE = frozenset([".csv", ".txt", ".json", ".xml", ".md", ".yaml", "files without a suffix"])
"""What says something of the data and is none."""
_PREFERRED = ("labeltrainids", "labelids")
_LISTS = (".", "splits", "lists", "ImageSets/Segmentation", "annotations")

_Key: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """An image and its mask."""

    image: Path
    mask: Path
    split: str
    """Train, val, test, or empty."""


@dataclass
class _File:
    path: Path
    is_mask: bool
    split: str
    inside: tuple[str, ...]
    """Folders between, without those that name a role or a split."""


@dataclass
class _Folder:
    root: Path
    images: list[_File] = field(default_factory=list)
    masks: list[_File] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def find_pairs(root: Path) -> tuple[list[Pair], Counter[str]]:
    """All pairs in a folder, by the name of the image, and what was left out, counted by kind.

    Raises:
        UserError: no masks, an image without a mask, a mask without an image, two of one name, a
            list that names what is not there.
    """
    found = _look(root)
    if not found.masks:
        raise UserError(
            f"{root}: no masks. Expected folders images/ and masks/ (or labels/, annotations/, "
            f"SegmentationClass/) with files of the same names, with train/, val/ and test/ above "
            f"or below; or COCO's JSON."
        )
    pairs, alone, lonely = _matched(found)
    divided = any(pair.split for pair in pairs)
    lists = {} if divided else _lists(root)
    if lists:
        pairs, unlisted = _listed(root, pairs, lists, found)
        found.left_out["images in no list"] += unlisted
    else:
        _whole(found, pairs, alone, lonely)
        if divided:
            beside = sum(not pair.split for pair in pairs)
            found.left_out["images beside the splits"] += beside
            pairs = [pair for pair in pairs if pair.split]
    return sorted(pairs, key=lambda pair: pair.image), +found.left_out


def _look(root: Path) -> _Folder:
    seen = find_images(root)
    left_out = Counter({k: n for k, n in seen.left_out.items() if k not in _BESIDE})
    found = _Folder(root, left_out=left_out)
    for path in seen.images:
        parts = path.relative_to(root).parts[:-1]
        role, split, inside = "", "", []
        for part in parts:
            words = _words(part)
            mine = (
                "neither" if words & _NEITHER else "mask" if words & MASKS
                else "image" if words & IMAGES else ""
            )  # fmt: skip
            splits = {WORDS[word] for word in words if word in WORDS}
            role = mine or role
            split = splits.pop() if len(splits) == 1 else split
            if not mine and not splits:
                inside.append(part)
        if not role:
            role = "mask" if re.search(r"_(mask|gt|label)$", path.stem, re.IGNORECASE) else "image"
        if role == "neither" or (role == "mask" and _OTHER_FORM.search(path.stem)):
            found.left_out["pictures in other folders"] += role == "neither"
            continue
        file = _File(path, role == "mask", split, tuple(inside))
        (found.masks if file.is_mask else found.images).append(file)
    return found


def _words(part: str) -> set[str]:
    """The words of a folder's name: `Train_Labels`, `trainannot`, `val-images`."""
    words = set(re.split(r"[^a-z0-9]+", part.casefold())) - {""}
    for word in list(words):
        if found := re.fullmatch(r"(train|val|test)(annots?|masks?|labels?|images?|gt)", word):
            words |= set(found.groups())
    return words


def _matched(found: _Folder) -> tuple[list[Pair], list[_File], list[_File]]:
    """The pairs, the images without a mask, and the masks without an image."""
    by_key: dict[_Key, list[_File]] = defaultdict(list)
    for image in found.images:
        for key in _keys(image, _IMAGE_ENDING):
            by_key[key].append(image)
    chosen: dict[Path, _File] = {}
    lonely: list[_File] = []
    for mask in sorted(found.masks, key=_preference):
        known = (by_key.get(key, []) for key in _keys(mask, _MASK_ENDING))
        one = next((images for images in known if len(images) == 1), None)
        if one is None:
            lonely.append(mask)
            continue
        image = one[0]
        if image.path not in chosen:
            chosen[image.path] = mask
        elif _preference(chosen[image.path]) == _preference(mask):
            raise UserError(
                f"{image.path}: two masks belong to it, {chosen[image.path].path} and {mask.path}. "
                f"Keep one of them."
            )
    pairs = [
        Pair(image.path, chosen[image.path].path, image.split or chosen[image.path].split)
        for image in found.images
        if image.path in chosen
    ]
    return pairs, [image for image in found.images if image.path not in chosen], lonely


def _keys(file: _File, ending: re.Pattern[str]) -> list[_Key]:
    """Under which names a file is looked for, the most exact first."""
    stems = dict.fromkeys((file.path.stem, ending.sub("", file.path.stem)))
    return [
        (*where, stem)
        for where in ((file.split, *file.inside), (file.split, "*"), ("*",))
        for stem in stems
        if stem
    ]


def _preference(mask: _File) -> int:
    word = mask.path.stem.rpartition("_")[2].casefold()
    return _PREFERRED.index(word) if word in _PREFERRED else len(_PREFERRED)


def _whole(
    found: _Folder, pairs: Sequence[Pair], alone: Sequence[_File], lonely: Sequence[_File]
) -> None:
    """Raise a UserError where an image or a mask is alone. A split without any mask, such as a test
    part whose masks nobody has, is left out."""
    splits = {pair.split for pair in pairs}
    bare = [image for image in alone if image.split and image.split not in splits]
    for name in sorted({image.split for image in bare}):
        count = sum(image.split == name for image in bare)
        found.left_out[f"images of {name}, which has no masks"] += count
    missing = [image.path for image in alone if image not in bare]
    if not pairs or missing:
        first = missing[0] if missing else found.masks[0].path
        what = "image has no mask" if missing else "mask has no image"
        near = "Masks have the names of their images, such as images/x.jpg and masks/x.png."
        raise UserError(
            f"{first}: this {what} ({len(missing) or len(lonely):,} of "
            f"{len(found.images) if missing else len(found.masks):,}). {near} Add what is missing, "
            f"or remove the file."
        )
    if lonely:
        raise UserError(
            f"{lonely[0].path}: this mask has no image ({len(lonely):,} of {len(found.masks):,}). "
            f"Add the image of the same name, or remove the mask."
        )


def _lists(root: Path) -> dict[str, list[Path]]:
    """The list files of each split, in the first place that has some."""
    for place in _LISTS:
        found: dict[str, list[Path]] = defaultdict(list)
        for file in sorted((root / place).glob("*.txt")):
            if file.stem.casefold() in WORDS:
                found[WORDS[file.stem.casefold()]].append(file)
            elif file.stem.casefold() == "trainval":
                found["trainval"].append(file)
        if "trainval" in found:
            whole = found.pop("trainval")
            if "train" not in found:
                found["train"] = whole
        if found:
            return {name: found[name] for name in SPLITS if name in found}
    return {}


def _listed(
    root: Path, pairs: Sequence[Pair], lists: Mapping[str, Sequence[Path]], found: _Folder
) -> tuple[list[Pair], int]:
    """The pairs that list files name, with their splits, and how many images are in none.

    A line names an image, by its path or without folder and ending, and may name its mask behind.
    Without a list for train, what is in none is trained on.
    """
    images, masks = _Names(root, found.images), _Names(root, found.masks)
    mask_of = {pair.image: pair.mask for pair in pairs}
    chosen: dict[Path, Pair] = {}
    for split, files in lists.items():
        for file in files:
            for number, line in enumerate(_text(file).splitlines(), 1):
                if not line.strip():
                    continue
                where = f"{file}, line {number}"
                image, mask = _entry(line.strip(), images, masks, where)
                mask = mask or mask_of.get(image)
                if mask is None:
                    raise UserError(
                        f"{where}: {image} has no mask. Add it, or take the image out of the list."
                    )
                before = chosen.setdefault(image, Pair(image, mask, split))
                if before.split != split:
                    raise UserError(
                        f"{where}: {image} is in the lists of {before.split} and {split}. "
                        f"Take it out of one."
                    )
    rest = [pair for pair in pairs if pair.image not in chosen]
    if "train" not in lists:
        return [*chosen.values(), *(Pair(p.image, p.mask, "train") for p in rest)], 0
    return list(chosen.values()), len(found.images) - len(chosen)


class _Names:
    """Files by what a list may call them."""

    def __init__(self, root: Path, files: Iterable[_File]) -> None:
        self._found: dict[str, set[Path]] = defaultdict(set)
        for file in files:
            relative = file.path.relative_to(root)
            for n in range(len(relative.parts)):
                tail = Path(*relative.parts[n:])
                self._found[tail.as_posix()].add(file.path)
                self._found[tail.with_suffix("").as_posix()].add(file.path)

    def find(self, text: str) -> Path | None:
        """The one file of this name, whatever folders elsewhere stand in front."""
        parts = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".")]
        for n in range(len(parts)):
            found = self._found.get("/".join(parts[n:]), set())
            if len(found) == 1:
                return next(iter(found))
        return None


def _entry(line: str, images: _Names, masks: _Names, where: str) -> tuple[Path, Path | None]:
    if (whole := images.find(line)) is not None:  # a name with spaces
        return whole, None
    parts = re.split(r"[\s,;]+", line)
    image = images.find(parts[0])
    if image is None:
        raise UserError(
            f"{where}: {parts[0]!r:.100} is no image here, or is the name of several. Expected the "
            f"path of an image, or its name without the ending."
        )
    return image, masks.find(parts[1]) if len(parts) > 1 else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as UTF-8 text ({error}).") from None
