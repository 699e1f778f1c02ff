"""What the values of a mask file mean: classes by number, by colour, or by a table of names.

Beside the masks may lie `classes.csv` with a column `name`, and where they are needed `number` (the
value of a grey or palette mask) and `colour` (`#rrggbb`, or `r,g,b`, or three columns). A row
called `ignore`, `void` or `unlabelled` has the value of pixels that do not count; without one that
is 255.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UserError, nearest
from ..text import is_name
from .dataset import IGNORED
from .preprocess import read_image

TABLES = (
    "classes.csv", "class_dict.csv", "labelmap.txt", "label_colors.txt", "classes.txt",
    "class_names.txt", "codes.txt",
)  # fmt: skip
"""Files with the classes, in the folder of the data. Each line of a text is a name, or CamVid's
`64 128 64 Animal`, or CVAT's `Animal:64,128,64::`."""
NOT_COUNTED = frozenset(["ignore", "ignored", "void", "unlabelled", "unlabeled"])
MOST = 254
"""Classes: a mask is a byte for each pixel, with one value for the ignored ones."""
_GREY = np.uint32(0x010101)
_COLUMNS = {
    "name": "name", "class": "name", "label": "name",
    "number": "number", "id": "number", "index": "number", "value": "number",
    "colour": "colour", "color": "colour", "rgb": "colour", "hex": "colour",
    "r": "red", "g": "green", "b": "blue", "red": "red", "green": "green", "blue": "blue",
}  # fmt: skip


@dataclass(frozen=True)
class Values:
    """What the values of the masks stand for."""

    names: tuple[str, ...]
    """Names of the classes, in the order of the network's outputs."""
    numbers: Mapping[int, int] = field(default_factory=dict)
    """Value of a grey or palette mask -> class, or `IGNORED`."""
    colours: Mapping[int, int] = field(default_factory=dict)
    """Colour 0xRRGGBB -> class, or `IGNORED`."""
    numbered: bool = True
    """Whether grey and palette masks are read by their numbers and not by their colours."""
    source: str = ""
    """Where that stands, for messages."""

    @property
    def digest(self) -> str:
        """All of it as a text, for a fingerprint."""
        return repr((self.names, sorted(self.numbers.items()), sorted(self.colours.items())))

    @cached_property
    def _classes(self) -> NDArray[np.int16]:
        found = np.full(1 << 16, -1, np.int16)
        found[list(self.numbers)] = list(self.numbers.values())
        return found

    @cached_property
    def _colours(self) -> tuple[NDArray[np.uint32], NDArray[np.int16]]:
        order = sorted(self.colours)
        classes = np.array([self.colours[code] for code in order] or [-1], np.int16)
        return np.array(order or [1 << 24], np.uint32), classes

    def read(self, path: Path) -> NDArray[np.uint8]:
        """The class of each pixel of a mask file, `[H, W]`, `IGNORED` where there is none.

        Raises:
            UserError: it cannot be read, or holds a value or colour that is no class.
        """
        return self.of(stored(path, palette=self.numbered), str(path))

    def of(self, values: NDArray[np.unsignedinteger], where: str) -> NDArray[np.uint8]:
        """`read` of what `stored` gives."""
        if not self.numbered and values.dtype != np.uint32:  # black and white are colours, too
            as_colours = values.clip(0, 255).astype(np.uint32) * _GREY
            if np.isin(np.unique(as_colours), list(self.colours)).all():
                values = as_colours.astype(np.uint32)
        if values.dtype == np.uint32 and self.colours:
            codes, classes = self._colours
            at = np.searchsorted(codes, values).clip(max=len(codes) - 1)
            found = np.where(codes[at] == values, classes[at], np.int16(-1))
        elif values.dtype == np.uint32:
            grey, levels = is_grey(values)
            if not grey:
                raise UserError(
                    f"{where}: the mask is coloured ({_listed(values)}), and nothing says which "
                    f"colour is which class. Write classes.csv with the columns name and colour "
                    f"(#rrggbb) beside the folders."
                )
            found = self._classes[levels]
        else:
            found = self._classes[values]
        if (found < 0).any():
            odd = values[found < 0]
            raise UserError(
                f"{where}: {_listed(odd)} {'is' if len(np.unique(odd)) == 1 else 'are'} no class "
                f"({len(odd):,} pixels; {self.source}). {self._remedy(where)}"
            )
        return found.astype(np.uint8)

    def _remedy(self, where: str) -> str:
        if Path(where).suffix.lower() in (".jpg", ".jpeg"):
            return "JPEG changes the values of a mask: save masks as PNG."
        return "Add it to classes.csv, with the name ignore where such pixels do not count."


def _listed(values: NDArray[np.unsignedinteger]) -> str:
    """The first of some values: `value 37`, `colours #00ff00, #80ff00`."""
    found = np.unique(values)
    coloured = values.dtype == np.uint32
    some = ", ".join(f"#{int(x):06x}" if coloured else str(int(x)) for x in found[:4])
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    return f"{'colour' if coloured else 'value'}{'s' if len(found) > 1 else ''} {some}{more}"


def stored(path: Path, palette: bool = True) -> NDArray[np.unsignedinteger]:
    """What a mask file holds, `[H, W]`: numbers `uint8` or `uint16`, or colours `uint32` 0xRRGGBB.

    Args:
        palette: whether a palette mask gives its numbers, and not its colours.
    """
    return numbers_or_colours(read_image(path), palette)


def numbers_or_colours(image: Image.Image, palette: bool = True) -> NDArray[np.unsignedinteger]:
    """`stored` of an image."""
    if image.mode in ("L", "LA") or (palette and image.mode in ("P", "PA")):
        values = np.asarray(image)
        return values if values.ndim == 2 else values[..., 0]
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        return np.asarray(image).clip(0, 65535).astype(np.uint16)
    return coloured(image)


def coloured(image: Image.Image) -> NDArray[np.uint32]:
    """The colour of each pixel, 0xRRGGBB."""
    parts = np.asarray(image.convert("RGB"))
    found = np.zeros(parts.shape[:2], np.uint32)
    for channel in range(3):
        found <<= np.uint32(8)
        found |= parts[..., channel]
    return found


def is_grey(colours: NDArray[np.unsignedinteger]) -> tuple[bool, NDArray[np.uint8]]:
    """Whether red, green and blue are the same everywhere, and that value."""
    levels = (colours & 0xFF).astype(np.uint8)
    return bool((colours == levels * _GREY).all()), levels


def table(folder: Path) -> Path | None:
    """The file with the classes, where there is one."""
    return next((folder / name for name in TABLES if (folder / name).is_file()), None)


def read_table(path: Path) -> Values:
    """The classes that a table names.

    Raises:
        UserError: a column or a value that is not understood, a class that stands twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error}).") from None
    rows = _lines(text) if path.suffix == ".txt" else _rows(path, text)
    names: list[str] = []
    numbers: dict[int, int] = {}
    colours: dict[int, int] = {}
    for n, row in enumerate(rows):
        where = f"{path}, row {n + 1}"
        name = row["name"]
        if name.casefold() in NOT_COUNTED:
            target = IGNORED
        elif not is_name(name) or name in names:
            raise UserError(f"{where}: the name {name!r:.60} is empty, odd, or stands twice.")
        else:
            target = len(names)
            names.append(name)
        number = _number(row.get("number", str(n)), where)
        colour = _colour(row, where)
        for held, key, text in (
            (numbers, number, f"{number}"),
            (colours, colour, f"#{colour:06x}"),
        ):
            if key < 0:
                continue
            if held.get(key, target) != target:
                raise UserError(f"{where}: {text} stands for two classes. Give each its own.")
            held[key] = target
    if not 2 <= len(names) <= MOST:
        raise UserError(f"{path}: {len(names)} classes; expected 2 to {MOST}, without ignore.")
    if colours and len(colours) < len(rows):
        raise UserError(f"{path}: some classes have a colour and some none. Give each one.")
    numbers.setdefault(IGNORED, IGNORED)
    numbered = not colours or "number" in rows[0]
    said = f"{path.name} has {len(names)} classes"
    return Values(tuple(names), numbers, colours, numbered, said)


def inferred(masks: Sequence[tuple[Path, NDArray[np.unsignedinteger]]], whole: bool) -> Values:
    """The classes that the values of masks show, where no table names them: their numbers, or
    background and foreground where there are 0 and 255 alone.

    Args:
        masks: files and what `stored` gives of them.
        whole: whether these are all.

    Raises:
        UserError: colours, or values that look like no numbers of classes.
    """
    plain = Values(("",), {})
    found: set[int] = set()
    for path, values in masks:
        if values.dtype == np.uint32:
            grey, levels = is_grey(values)
            if not grey:
                plain.of(values, str(path))  # which says what to do
            values = levels
        found |= set(np.unique(values).tolist())
    if found == {0, IGNORED}:
        return Values(("background", "foreground"), {0: 0, IGNORED: 1}, source="0 and 255 are two")
    numbers = found - {IGNORED}
    most = max(numbers, default=0)
    if most >= MOST or most + 1 > 4 * max(len(numbers), 2):
        shown = ", ".join(str(x) for x in sorted(found)[:8])
        raise UserError(
            f"{masks[0][0].parent}: the masks hold the values {shown}{', ...' * (len(found) > 8)}, "
            f"which look like no numbers of classes from 0. Write classes.csv with the columns "
            f"name and number beside the folders."
        )
    if most < 1:
        raise UserError(
            f"{masks[0][0].parent}: the masks hold one class alone ({sorted(found)}); expected at "
            f"least two."
        )
    said = f"{'the' if whole else str(len(masks)) + ' of the'} masks show the classes 0 to {most}"
    return Values(
        tuple(map(str, range(most + 1))), {**{k: k for k in range(most + 1)}, IGNORED: IGNORED},
        source=said,
    )  # fmt: skip


def _lines(text: str) -> list[dict[str, str]]:
    rows = []
    for line in filter(None, map(str.strip, text.splitlines())):
        before = re.fullmatch(r"(?P<colour>\d+\s+\d+\s+\d+)\s+(?P<name>\S.*)", line)
        behind = re.fullmatch(r"(?P<name>[^:#]+):(?P<colour>\d+,\d+,\d+):.*", line)
        if found := before or behind:
            rows.append(found.groupdict())
        elif not line.startswith("#"):
            rows.append({"name": line})
    return rows


def _rows(path: Path, text: str) -> list[dict[str, str]]:
    lines = list(csv.reader(text.splitlines(), skipinitialspace=True))
    lines = [[cell.strip() for cell in line] for line in lines if any(map(str.strip, line))]
    given = lines[0] if lines else []
    columns = [_COLUMNS.get(cell.casefold(), "") for cell in given]
    if "name" not in columns:
        raise UserError(
            f"{path}: its first line is {', '.join(given)!r:.80}; expected names of columns: "
            f"name, and number or colour (r,g,b or #rrggbb)."
        )
    for cell, known in zip(given, columns, strict=True):
        if not known:
            raise UserError(
                f"{path}: unknown column {cell!r:.40}.{nearest(cell, list(_COLUMNS))} Expected "
                f"name, number, colour, or r, g and b."
            )
    if doubled := [c for c in columns if columns.count(c) > 1]:
        raise UserError(f"{path}: two columns mean {doubled[0]}. Keep one of them.")
    for n, line in enumerate(lines[1:], 1):
        if len(line) != len(columns):
            raise UserError(
                f"{path}, row {n}: {len(line)} values for {len(columns)} columns. Put r,g,b into "
                f"quotes, or write #rrggbb."
            )
    return [dict(zip(columns, line, strict=True)) for line in lines[1:]]


def _number(text: str, where: str) -> int:
    if not re.fullmatch(r"\d{1,5}", text) or int(text) > 65535:
        raise UserError(f"{where}: the number is {text!r:.40}; expected 0 to 65535.")
    return int(text)


def _colour(row: Mapping[str, str], where: str) -> int:
    """0xRRGGBB; -1 where the row has none."""
    if "red" in row:
        parts: Sequence[str] = [row.get(c, "") for c in ("red", "green", "blue")]
    elif "colour" in row:
        text = row["colour"]
        if found := re.fullmatch(r"#?([0-9a-fA-F]{6})", text):
            return int(found[1], 16)
        parts = re.split(r"[\s,;]+", text.strip("()[] "))
    else:
        return -1
    if len(parts) != 3 or not all(re.fullmatch(r"\d{1,3}", p) and int(p) < 256 for p in parts):
        raise UserError(
            f"{where}: the colour is {' '.join(parts)!r:.40}; expected r,g,b, each 0 to 255, or "
            f"#rrggbb."
        )
    red, green, blue = map(int, parts)
    return red << 16 | green << 8 | blue
