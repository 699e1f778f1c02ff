"""The files that a user names for results: the one writer of all commands.

It refuses what would destroy something: a path that the command reads, and one within a bundle,
whose manifest would no longer hold. A plain file is written whole or not at all, a link is followed
to its file, and a pipe or a device, such as /dev/stdout, gets the bytes.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..errors import UserError
from .atomic import staged_file
from .bundle import is_bundle
from .manifest import MANIFEST


def check_outputs(outputs: Iterable[Path | None], inputs: Iterable[Path] = ()) -> None:
    """Refuse the paths that cannot be written, or not without a loss; None is passed over.

    Args:
        inputs: what the command reads: files, and folders with all that is in them.

    Raises:
        UserError: a folder, a path whose folder is not there, an input, a file within a bundle, or
            one path for two outputs.
    """
    read, seen = list(inputs), list[Path]()
    for path in filter(None, outputs):
        if not path.absolute().parent.is_dir():
            raise UserError(f"{path}: there is no folder {path.absolute().parent} to write to.")
        check_output(path, read)
        if any(_same(path, other) for other in seen) and not is_stream(path):
            raise UserError(f"{path}: named for two results; give each a file of its own.")
        seen.append(path)


def check_output(path: Path, inputs: Iterable[Path] = ()) -> None:
    """As `check_outputs`, for one path whose folder need not be there yet."""
    try:
        if path.is_dir():
            raise UserError(f"{path}: a folder; give the name of a file.")
        for source in inputs:
            if _same(path, source) or (source.is_dir() and _lies_in(path, source)):
                raise UserError(
                    f"{path}: the command reads {source}, and would destroy it; nothing was "
                    f"written. Give another file."
                )
        if (bundle := bundle_around(path)) is not None:
            raise UserError(
                f"{path}: lies in the bundle {bundle}, whose manifest does not name such a file; "
                f"nothing was written. Give a path outside."
            )
    except (OSError, ValueError, RuntimeError) as error:  # too long, with a NUL, a circle of links
        raise UserError(f"{str(path)[:200]!r} cannot be written: {error}.") from None


def bundle_around(path: Path) -> Path | None:
    """The bundle within which a file would be written at `path`; links are followed."""
    for folder in path.resolve().parents:
        if (folder / MANIFEST).is_file() and is_bundle(folder):
            return folder
    return None


@contextmanager
def written(path: Path, inputs: Iterable[Path] = ()) -> Iterator[BinaryIO]:
    """Yield a stream whose bytes go to `path`.

    Raises:
        UserError: see `check_output`; the file cannot be written.
    """
    check_output(path, inputs)
    about_another = None
    try:
        with _opened(path) as stream:
            try:
                yield stream
            except OSError as error:
                about_another = error if error.filename else None
                raise
    except OSError as error:
        if error is about_another:
            raise
        raise UserError(f"{path} cannot be written: {error.strerror}.") from None


def write_text(path: Path, text: str, inputs: Iterable[Path] = ()) -> None:
    """Write `text` as UTF-8; see `written`."""
    with written(path, inputs) as stream:
        stream.write(text.encode("utf-8"))


def _opened(path: Path) -> AbstractContextManager[BinaryIO]:
    if is_stream(path):
        return _direct(path)
    if path.is_symlink():
        if path.exists():
            # The system says whether this link may be followed, such as one in /tmp.
            os.close(os.open(path, os.O_WRONLY))
        path = path.resolve()
    return staged_file(path)


def is_stream(path: Path) -> bool:
    """Whether the bytes go through `path` to somebody: a pipe, a device, an open file's name."""
    try:
        found = path.stat()
    except OSError:
        return False
    if not stat.S_ISREG(found.st_mode):
        return not stat.S_ISDIR(found.st_mode)
    place = str(path.absolute().parent.resolve())
    return place == "/dev" or place.startswith("/proc/") or _standard(found) is not None


def _standard(found: os.stat_result) -> int | None:
    """The standard stream that writes to this very file."""
    for number in (1, 2):
        with suppress(OSError):
            if os.path.samestat(found, os.fstat(number)):
                return number
    return None


@contextmanager
def _direct(path: Path) -> Iterator[BinaryIO]:
    number = _standard(path.stat())
    if number is None:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND)
    else:  # by its own descriptor: what is printed before and after keeps its place
        sys.stdout.flush()
        sys.stderr.flush()
        handle = os.dup(number)
    with os.fdopen(handle, "wb") as stream:
        yield stream


def _same(one: Path, other: Path) -> bool:
    with suppress(OSError):
        return one.samefile(other)
    return one.resolve() == other.resolve()


def _lies_in(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
