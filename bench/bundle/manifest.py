"""The text of a manifest: read with limits, parsed strictly, hashed, written.

`manifest.json` holds the SHA-256 of every other file; `manifest.sha256` beside it holds that of
`manifest.json`, as the tool `sha256sum` writes it, so that `sha256sum -c manifest.sha256` works on
a device. Older readers ignore the second file. The last entry of the
history names it, so its loss is found as well.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import UserError

MANIFEST = "manifest.json"
SEAL = "manifest.sha256"
SIGNATURE = "manifest.sig"
BESIDE = (MANIFEST, SEAL, SIGNATURE)
"""The files of a bundle that the manifest cannot name."""
SEALED_BY = "sealed_by"
LIMIT_BYTES = 32 * 2**20
_MOST_FILES = 10_000
_DEEPEST = 64
_LONGEST_KEY = 1_000
_HEX = frozenset("0123456789abcdef")
_STEM = "[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}"
_NAMES = re.compile(
    r"architecture\.json|report\.html|section\.html"
    rf"|{_STEM}\.(onnx|data|safetensors|npz|engine|plan|xml|bin)"
    rf"|[A-Za-z0-9][A-Za-z0-9_-]{{0,99}}/{_STEM}\.(onnx|data|engine|plan|json|txt)"
)
"""Every name that a bundle's file can have. What is not on this list may be something that another
program runs or follows when it meets it in a folder: .git/config, .envrc, conftest.py, x.lnk."""
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|clock\$|(com|lpt)[0-9])", re.IGNORECASE)
"""What Windows takes for a device, whatever follows the first dot."""


def read_sealed(folder: Path) -> tuple[bytes, bytes | None]:
    """The bytes of `manifest.json` and of `manifest.sha256`, None where there is none."""
    try:
        content = _read(folder / MANIFEST, LIMIT_BYTES)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise UserError(
            f"{folder}: not a bundle (no {MANIFEST}). Expected a directory written by vcompress."
        ) from None
    return content, read_beside(folder, SEAL)


def read_beside(folder: Path, name: str) -> bytes | None:
    """The small file `name` beside the manifest, None where there is none."""
    try:
        return _read(folder / name, 4096)
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        raise UserError(f"{folder / name}: expected a file. Write the bundle again.") from None


def _read(file: Path, limit_bytes: int) -> bytes:
    if file.is_symlink():
        raise UserError(f"{file}: a link; a bundle holds files only. Write the bundle again.")
    if file.exists() and not file.is_file() and not file.is_dir():
        raise UserError(f"{file}: not a plain file. Write the bundle again.")
    size = file.stat().st_size
    if size > limit_bytes:
        raise UserError(f"{file}: larger than {limit_bytes:,} bytes; not a manifest.")
    return file.read_bytes()


def parse_sealed(content: bytes, seal: bytes | None, where: str) -> dict[str, Any]:
    """As `parse`, held against `seal`: what `manifest.sha256` holds, None where there is none.

    Raises:
        UserError: the manifest was changed, or it is not strict JSON.
    """
    if seal is not None and seal != seal_of(content):
        raise UserError(
            f"{where}: changed after it was written (its SHA-256 is "
            f"{hashlib.sha256(content).hexdigest()[:16]}..., not what {SEAL} says). "
            f"Write or copy the bundle again."
        )
    found = parse(content, where)
    if seal is None and says_sealed(found):
        raise UserError(
            f"{where}: {SEAL}, which holds the hash of this file, is missing. Copy the bundle "
            f"whole, or write it again."
        )
    return found


def parse(content: bytes, where: str) -> dict[str, Any]:
    """JSON without what two readers may understand in two ways: double keys, NaN, infinity."""
    try:
        found = json.loads(
            content.decode("utf-8"), object_pairs_hook=_table, parse_constant=_no_constant
        )
        _check_values(found, 0)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error}).") from None
    if not isinstance(found, dict):
        raise UserError(f"{where}: expected a JSON object.")
    return found


def says_sealed(manifest: Mapping[str, Any]) -> bool:
    """Whether the bundle was written with a `manifest.sha256`."""
    history = manifest.get("history")
    last = history[-1] if isinstance(history, list) and history else None
    return isinstance(last, dict) and SEALED_BY in last


def seal_of(content: bytes) -> bytes:
    """What `manifest.sha256` holds for these bytes of `manifest.json`."""
    return f"{hashlib.sha256(content).hexdigest()}  {MANIFEST}\n".encode()


def write(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write `manifest.json` and its `manifest.sha256`.

    Raises:
        ValueError: a value that JSON has no word for.
    """
    history = [dict(entry) for entry in manifest["history"]]
    if history:
        history[-1][SEALED_BY] = SEAL
    text = json.dumps({**manifest, "history": history}, indent=2, allow_nan=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    (folder / SEAL).write_bytes(seal_of(text.encode()))


def check_files(files: Mapping[str, Any], where: str) -> None:
    """Refuse names that are not on the list, leave the bundle, or are one on some file system, and
    entries that no file has."""
    if len(files) > _MOST_FILES:
        raise UserError(f"{where}: names {len(files):,} files; expected {_MOST_FILES:,} at most.")
    folded: dict[str, str] = {}
    for name, entry in files.items():
        _check_name(name, where)
        if len(entry.sha256) != 64 or not _HEX.issuperset(entry.sha256):
            raise UserError(f"{where}: files.{name}.sha256 is not 64 hexadecimal digits.")
        if not 0 <= entry.bytes < 2**63:
            raise UserError(f"{where}: files.{name}.bytes = {str(entry.bytes)[:40]}: no such size.")
        same = folded.setdefault(_fold(name), name)
        if same != name:
            raise UserError(
                f"{where}: the file names {same!r} and {name!r} are one on some file systems; "
                f"refused."
            )
    for name in files:
        devices = [part for part in name.split("/") if _DEVICES.fullmatch(part.partition(".")[0])]
        if not _NAMES.fullmatch(name) or devices:
            raise UserError(
                f"{where}: {name[:80]!r} is no name that a bundle's file has, such as model.onnx "
                f"or engines/NAME.engine; refused."
            )
        for parent in PurePosixPath(name).parents:
            if (taken := folded.get(_fold(str(parent)))) is not None:
                raise UserError(
                    f"{where}: {taken!r} is a file and the folder of {name!r}; refused."
                )


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _check_name(name: str, where: str) -> None:
    parts = PurePosixPath(name).parts
    shown = name[:80]
    if not parts or name.startswith("/") or "\\" in name or "\0" in name or ".." in parts:
        raise UserError(f"{where}: the file name {shown!r} points outside the bundle; refused.")
    if str(PurePosixPath(name)) != name or not name.isprintable() or ":" in name or len(name) > 255:
        raise UserError(f"{where}: {shown!r} is no plain file name; refused.")
    if any(part != part.strip(" ").rstrip(".") for part in parts):
        raise UserError(
            f"{where}: the file name {shown!r} begins or ends with a space, or ends with a dot, "
            f"which some file systems drop; refused."
        )
    if _fold(parts[0]) in BESIDE:
        raise UserError(f"{where}: {shown!r} cannot be named by the manifest; refused.")


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        double, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {double[:80]!r} stands there twice")
    if any(len(key) > _LONGEST_KEY for key in table):
        raise ValueError(f"a key of more than {_LONGEST_KEY:,} characters")
    return table


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is no JSON number")


def _check_values(value: Any, depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError(f"more than {_DEEPEST} tables in one another")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number too large for 64 bits")
    inside: Iterable[Any] = ()
    if isinstance(value, (dict, list)):
        inside = value.values() if isinstance(value, dict) else value
    for inner in inside:
        if isinstance(inner, (dict, list, float)):
            _check_values(inner, depth + 1)
