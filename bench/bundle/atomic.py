"""Files and folders are written whole or not at all: a temporary sibling, fsync, one rename."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_STALE_SECONDS = 24 * 3600
_TRIES = 10


@contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """Yield an empty directory beside `path`; at the end it stands at `path`, whole.

    Everything in it is synced before one rename puts it in place. If the body raises, nothing is
    left behind and what was at `path` is untouched. The caller says beforehand whether `path` may
    be replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    staging = _staging(path)
    try:
        yield staging
        for file in staging.rglob("*"):
            sync(file)
        sync(staging)
        staging.chmod(0o755)
        _swap(staging, path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


@contextmanager
def staged_file(path: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Yield a file to write; at the end it stands at `path`, whole. If the body raises, nothing is
    left behind and what was at `path` is untouched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".writing", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
        Path(name).replace(path)
        sync(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def recover(path: Path) -> None:
    """Put back what a kill between the two renames of a replacement left aside."""
    previous = _previous(path)
    if path.name and not path.exists() and previous.is_dir():
        with suppress(FileNotFoundError):  # another process was quicker
            previous.rename(path)


def sweep(path: Path) -> None:
    """Remove what a killed run left half-written; a living one is younger than a day."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.writing"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink()


def sync(path: Path) -> None:
    """Have the file or directory on the disk."""
    with suppress(OSError):  # some file systems cannot sync a directory
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _staging(path: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".writing", dir=path.parent))


def _previous(path: Path) -> Path:
    return path.parent / f".{path.name}.previous"


def _swap(staging: Path, path: Path) -> None:
    """Put `staging` in the place of `path`. A kill between the renames is mended by `recover`."""
    previous = _previous(path)
    for tries_left in reversed(range(_TRIES)):
        if path.exists():
            _discard(previous, path)
            path.rename(previous)
        try:
            staging.rename(path)
            break
        except OSError as error:
            # A reader between the two renames took it for a kill and put the old one back.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not tries_left:
                raise
    sync(path.parent)
    _discard(previous, path)


def _discard(previous: Path, path: Path) -> None:
    """Remove the old one under a name that `recover` does not take: a kill may leave half of it."""
    if previous.exists():
        aside = _staging(path)
        previous.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
