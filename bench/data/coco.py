"""COCO's JSON, of objects (`instances_*.json`) or of whole scenes (`panoptic_*.json`), as classes
of pixels."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..text import is_name
from . import rle
from .dataset import IGNORED
from .folders import WORDS
from .mask_values import MOST, coloured
from .preprocess import read_image, size_of
from .sources import is_there

BACKGROUND = "background"
_OTHER = re.compile(r"captions|keypoints|image_info|stuff", re.IGNORECASE)
_MOST_FILES = 20


@dataclass(frozen=True)
class Annotated:
    """An image and what the JSON says of it."""

    image: Path
    size: tuple[int, int]
    """Height and width."""
    split: str
    """Train, val, test, or empty."""
    shapes: tuple[tuple[int, Any, str], ...] = ()
    """Class, segmentation, and the place of each object; crowds are of the class `IGNORED`."""
    panoptic: Path | None = None
    """The picture with the number of a segment in each pixel."""
    segments: Mapping[int, int] = field(default_factory=dict)
    """Number of a segment -> class."""


@dataclass(frozen=True)
class Annotations:
    """What several files of JSON say, one for each split."""

    names: tuple[str, ...]
    images: tuple[Annotated, ...]
    ground: int
    """What a pixel of no object is: a class, or `IGNORED`."""
    sha256: str
    """Hash over the files."""
    left_out: Counter[str]

    def mask(self, i: int) -> NDArray[np.uint8]:
        """The class of each pixel of image number i, `[H, W]`.

        Raises:
            UserError: a shape or a segment that is not understood.
        """
        one = self.images[i]
        if one.panoptic is None:
            read = [(n, rle.shape(x, one.size, where)) for n, x, where in one.shapes]
            crowds = [pixels for n, pixels in read if n == IGNORED]
            ground = rle.classes_of([(IGNORED, pixels) for pixels in crowds], one.size, self.ground)
            above = rle.classes_of([s for s in read if s[0] != IGNORED], one.size, IGNORED)
            return np.where(above == IGNORED, ground, above)
        colours = coloured(read_image(one.panoptic))
        # Red is the lowest byte of a segment's number.
        numbers = (colours >> 16) | (colours & 0xFF00) | ((colours & 0xFF) << 16)
        found = np.full((numbers.shape[0], numbers.shape[1]), IGNORED, np.uint8)
        for number in np.unique(numbers).tolist():
            if number and number not in one.segments:
                raise UserError(
                    f"{one.panoptic}: segment {number} is not in its segments_info. Take the "
                    f"picture that belongs to the JSON."
                )
            found[numbers == number] = one.segments.get(number, IGNORED)
        if found.shape != one.size:
            raise UserError(
                f"{one.panoptic}: {found.shape[1]}x{found.shape[0]} pixels; its image has "
                f"{one.size[1]}x{one.size[0]}."
            )
        return found


def annotation_files(root: Path) -> list[Path]:
    """The files of JSON with COCO's tables that a folder is described by; empty where it is not.

    Whole scenes are preferred to objects where there are both, with their pictures.
    """
    if root.is_file():
        return [root]
    places = (root / "annotations", root, *sorted(p for p in root.iterdir() if p.is_dir()))
    for place in places:
        files = sorted(p for p in place.glob("*.json") if not _OTHER.search(p.stem))
        if place not in places[:2]:
            files = [p for p in files if "coco" in p.stem.casefold()]
        if not files or len(files) > _MOST_FILES:
            continue
        whole = [p for p in files if p.stem.startswith("panoptic") and p.with_suffix("").is_dir()]
        objects = [p for p in files if p.stem.startswith("instances")]
        chosen = whole or objects or [p for p in files if _is_coco(p)]
        if chosen and place not in places[:2]:  # one in the folder of each split
            return [p for other in places[2:] for p in sorted(other.glob(chosen[0].name))]
        if chosen:
            return chosen
    return []


def _is_coco(file: Path) -> bool:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"images", "annotations", "categories"} <= found.keys()


def read_all(root: Path, files: Sequence[Path]) -> Annotations:
    """What the files say together.

    Raises:
        UserError: a file that is no such JSON, other categories in one of them, a missing image, an
            image of another size than the JSON says, an object without a shape.
    """
    digest, tables = hashlib.sha256(), []
    for file in files:
        try:
            content = file.read_bytes()
            tables.append(_Table(file, json.loads(content)))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{file}: cannot be read as JSON ({error}).") from None
        digest.update(content)
    categories = _categories(tables)
    panoptic = tables[0].panoptic
    named = list(categories.values())
    ground = IGNORED
    if not panoptic:
        named = named if BACKGROUND in named else [BACKGROUND, *named]
        ground = named.index(BACKGROUND)
    if not 2 <= len(named) <= MOST:
        raise UserError(f"{files[0]}: {len(named)} classes; expected 2 to {MOST}.")
    numbers = {key: named.index(name) for key, name in categories.items()}
    left_out: Counter[str] = Counter()
    images = [one for table in tables for one in table.images(root, numbers, left_out)]
    if not images:
        raise UserError(f"{files[0]}: no image in it. Give a file with images and annotations.")
    return Annotations(tuple(named), tuple(images), ground, digest.hexdigest(), +left_out)


class _Table:
    """One file."""

    def __init__(self, file: Path, content: Any) -> None:
        self.file = file
        for key in ("images", "annotations", "categories"):
            rows = content.get(key) if isinstance(content, dict) else None
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise UserError(
                    f"{file}: no list {key!r}; expected COCO's JSON with images, annotations and "
                    f"categories."
                )
        self.content: dict[str, list[dict[str, Any]]] = content
        self.panoptic = any("segments_info" in row for row in content["annotations"][:1])
        words = [*re.split(r"[^a-z]+", file.stem.casefold()), file.parent.name.casefold()]
        self.split = next((WORDS[word] for word in words if word in WORDS), "")

    def used(self) -> Iterator[Any]:
        """The categories of all objects."""
        for row in self.content["annotations"]:
            for one in row.get("segments_info", [row]):
                yield one.get("category_id") if isinstance(one, dict) else None

    def images(
        self, root: Path, numbers: Mapping[Any, int], left_out: Counter[str]
    ) -> Iterator[Annotated]:
        of_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for row in self.content["annotations"]:
            of_image[row.get("image_id")].append(row)
        place = self._place(root)
        for row in self.content["images"]:
            name, size = row.get("file_name"), (row.get("height"), row.get("width"))
            where = f"{self.file}: image {str(name)!r:.100}"
            if not isinstance(name, str) or not all(isinstance(x, int) for x in size):
                raise UserError(f"{where}: expected file_name, height and width.")
            path = _inside(place, name, where)
            if not is_there(path):
                raise UserError(f"{where} is not in {place}. Add it, or remove it from the JSON.")
            width, height = size_of(path)
            if (height, width) != size:
                raise UserError(
                    f"{where}: {width}x{height} pixels, and the JSON says {size[1]}x{size[0]}. "
                    f"Take the image that was annotated."
                )
            rows = of_image.get(row.get("id"), [])
            if not self.panoptic:
                shapes = tuple(self._shapes(rows, numbers))
                yield Annotated(path, (height, width), self.split, shapes)
            elif not rows:
                left_out["images without an annotation"] += 1
            else:
                picture = _inside(self.file.with_suffix(""), str(rows[0].get("file_name")), where)
                segments = {
                    int(one["id"]): numbers[one["category_id"]] for one in rows[0]["segments_info"]
                }
                yield Annotated(
                    path, (height, width), self.split, panoptic=picture, segments=segments
                )

    def _shapes(
        self, rows: Iterable[dict[str, Any]], numbers: Mapping[Any, int]
    ) -> Iterator[tuple[int, Any, str]]:
        for row in rows:
            where = f"{self.file}: annotation {row.get('id')!s:.40}"
            if not row.get("segmentation"):
                raise UserError(
                    f"{where} has no segmentation, so no pixels. Boxes alone are for detection."
                )
            number = IGNORED if row.get("iscrowd") else numbers[row.get("category_id")]
            yield number, row["segmentation"], where

    def _place(self, root: Path) -> Path:
        """The folder with the images: the first in which the first one lies."""
        base = root if root.is_dir() else root.parent
        tail = re.sub(r"^(panoptic|instances)_", "", self.file.stem)
        tops = (base, base.parent) if base == self.file.parent else (base,)
        places = [self.file.parent] + [
            top / sub
            for top in tops
            for sub in (f"images/{tail}", tail, f"images/{self.split}", self.split, "images", ".")
        ]
        first = str((self.content["images"] or [{}])[0].get("file_name"))
        return next((p for p in places if is_there(p / first)), places[0])


def _inside(place: Path, name: str, where: str) -> Path:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"{where}: the path {name!r:.100} leads out of the folder.")
    return place / name


def _categories(tables: Sequence[_Table]) -> dict[Any, str]:
    """The name of each category by its id, in the order of the ids; the same in all files. What
    Roboflow puts above the others, in `none`, is left out where nothing is of it."""
    found: dict[Any, str] = {}
    for table in tables:
        here: dict[Any, Any] = {r.get("id"): r.get("name") for r in table.content["categories"]}
        if not all(isinstance(k, int) and is_name(v) for k, v in here.items()):
            raise UserError(f"{table.file}: a category without a number or a printable name.")
        if found and here != found:
            raise UserError(
                f"{table.file} and {tables[0].file} have different categories. Give all the same."
            )
        found = {key: str(here[key]) for key in sorted(here)}
    used = {key for table in tables for key in table.used()}
    if unknown := used - found.keys():
        raise UserError(
            f"{tables[0].file}: category {min(unknown, key=str)} of an annotation is not among the "
            f"categories."
        )
    rows = [row for table in tables for row in table.content["categories"]]
    above = {row.get("supercategory") for row in rows}
    top = {r["id"] for r in rows if r["name"] in above and r.get("supercategory") == "none"}
    kept = {key: name for key, name in found.items() if key in used or key not in top}
    if doubled := [x for x in kept.values() if list(kept.values()).count(x) > 1]:
        raise UserError(f"{tables[0].file}: two categories are called {doubled[0]!r}. Rename one.")
    return kept
