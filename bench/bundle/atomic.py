"""Files and folders are written whole or not at all: a marked work folder, fsync, one rename.

What is written stands in a work folder beside its place, of an unpredictable name, until one rename
puts it there. A file in the work folder marks it as ours, and its writer holds a lock on that file.
A process that ends, be it by a kill, loses its locks: so a work folder without the mark is a user's
and is never touched, and one whose lock is free is swept by the next writer.
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from ..errors import UserError
from .manifest import MANIFEST

MARK = ".vcompress-work"
_SAYS = b"A work folder of vcompress. It is removed when the command that made it has ended.\n"
_STALE_SECONDS = 24 * 3600
_TRIES = 10
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
State = tuple[int, int, int, int] | None


@dataclass
class _Claim:
    handle: int
    depth: int
    found: State
    """The manifest that was there when the claim began."""


_claims: dict[tuple[int, str], _Claim] = {}
"""By process and path: a forked child has a copy of this table, and none of the locks."""
_living: set[tuple[int, str]] = set()
"""Work folders of this process."""


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Keep other processes from writing a bundle at `path` until the block ends.

    The claim is a lock on `.NAME.lock` beside it. It ends with its process, however that ends, and
    the same process may claim `path` again within the block.

    Raises:
        UserError: another process writes there.
    """
    path = _absolute(path)
    key = os.getpid(), str(path)
    if key not in _claims:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.parent / f".{path.name}.lock"
        handle = _lock_beside(lock)
        if handle is None:
            raise UserError(
                f"{path}: another process is writing there. Wait until it has ended, or give "
                f"another --out."
            )
        _claims[key] = _Claim(handle, 0, _state(path))
    claim = _claims[key]
    claim.depth += 1
    try:
        yield
    finally:
        claim.depth -= 1
        if not claim.depth:
            del _claims[key]
            if os.fstat(claim.handle).st_size == 0:  # a file with content is not ours
                (path.parent / f".{path.name}.lock").unlink(missing_ok=True)
            os.close(claim.handle)


@contextmanager
def staged_folder(path: Path, replaces: Callable[[Path], Collection[str]]) -> Iterator[Path]:
    """Yield an empty directory; at the end it stands at `path`, whole.

    Everything in it is synced before one rename puts it in place. What `path` held besides the
    files that are replaced is carried over. If the body raises, nothing is left behind and what was
    at `path` is untouched.

    Args:
        replaces: gives the names of the files at `path` that go, with / between folders; raises a
            UserError where `path` may not be replaced.

    Raises:
        UserError: another process writes there, or wrote there meanwhile; a file that would have to
            be carried over has a name that the new folder has too.
    """
    path = _absolute(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with claimed(path):
        _sweep(path)
        with _work_folder(path) as work:
            new = work / "new"
            new.mkdir()
            with _named(new, f"{path}"):
                yield new
            for file in new.rglob("*"):
                sync(file)
            sync(new)
            claim = _claims[os.getpid(), str(path)]
            if _state(path) != claim.found:
                raise UserError(
                    f"{path}: something else was written there meanwhile; it was left as it is. "
                    f"Give another --out."
                )
            goes = frozenset(replaces(path))
            if path.is_dir():
                _carry(path, new, goes)
                shutil.copymode(path, new)
            _swap(work, path, goes)
            claim.found = _state(path)


@contextmanager
def staged_file(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Yield a file to write; at the end it stands at `path`, whole. If the body raises, nothing is
    left behind and what was at `path` is untouched.

    Args:
        mode: permissions of a new file, less the umask; a file that is replaced keeps its own.
    """
    path = _absolute(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    with _work_folder(path) as work:
        new = work / "new"
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        with suppress(FileNotFoundError):
            shutil.copymode(path, new)
        new.replace(path)
        sync(path.parent)


def recover(path: Path) -> None:
    """Put back what a kill between the two renames of a replacement left aside."""
    path = _absolute(path)
    if not path.name or os.path.lexists(path):
        return
    for work in _work_folders(path):
        if (work / "old").is_dir():
            if _is_dead(work):
                with suppress(OSError):  # another process was quicker
                    (work / "old").rename(path)
                    shutil.rmtree(work, ignore_errors=True)
                return
            deadline = time.monotonic() + 1  # its writer is about to put the new one there
            while not path.exists() and work.exists() and time.monotonic() < deadline:
                time.sleep(0.001)


def take_folder(path: Path) -> None:
    """Make the folder `path` with our mark in it, or take over one that carries it.

    Raises:
        UserError: there is something without the mark.
    """
    if not os.path.lexists(path):
        path.mkdir(parents=True)
        (path / MARK).write_bytes(_SAYS)
    elif not is_ours(path):
        raise UserError(
            f"{path}: stands where vcompress keeps the state of a run, and is not from vcompress. "
            f"Move it elsewhere, or give another --out."
        )


def drop_folder(path: Path) -> None:
    """Remove the folder `path` where it carries our mark."""
    if is_ours(path):
        shutil.rmtree(path, ignore_errors=True)


def is_ours(folder: Path) -> bool:
    """Whether vcompress made the folder for its own work."""
    mark = folder / MARK
    try:
        plain = stat.S_ISDIR(folder.lstat().st_mode) and stat.S_ISREG(mark.lstat().st_mode)
        return plain and mark.stat().st_size == len(_SAYS) and mark.read_bytes() == _SAYS
    except OSError:
        return False


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """An empty folder among the system's temporary files, which is gone at the end. A UserError
    names the files in it without the folder, which nobody could find any more.

    What this user's processes have left there when they were killed is removed first.
    """
    place = _absolute(Path(tempfile.gettempdir())) / "vcompress"
    for work in _work_folders(place):
        if _is_dead(work):  # only this user may open the mark of one
            shutil.rmtree(work, ignore_errors=True)
    with _work_folder(place) as work:
        (work / "new").mkdir()
        with _named(work / "new", ""):
            yield work / "new"


@contextmanager
def _named(work: Path, name: str) -> Iterator[None]:
    """Put `name` for the folder `work` in the message of a UserError."""
    try:
        yield
    except UserError as error:
        said = f"{error}"
        if str(work) in said:
            said = said.replace(f"{work}/", f"{name}/" if name else "")
            error.args = (said.replace(str(work), name or "a temporary folder"), *error.args[1:])
        raise


def sync(path: Path) -> None:
    """Have the file or directory on the disk."""
    with suppress(OSError):  # some file systems cannot sync a directory
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _absolute(path: Path) -> Path:
    """The path by its name: `.` can be neither renamed nor have a sibling."""
    return Path(os.path.abspath(path))  # noqa: PTH100  `resolve` would follow links


def _state(path: Path) -> State:
    """What tells one manifest at `path` from another; None where there is none."""
    try:
        found = (path / MANIFEST).lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@contextmanager
def _work_folder(path: Path) -> Iterator[Path]:
    """A marked folder beside `path`, which only this user may enter; it is gone at the end."""
    work = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", suffix=".writing", dir=path.parent))
    key = os.getpid(), str(work)
    _living.add(key)
    handle = -1
    try:
        handle = os.open(work / MARK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        _lock(handle)
        os.write(handle, _SAYS)
        yield work
    finally:
        if (work / "old").is_dir() and not os.path.lexists(path):
            (work / "old").rename(path)
        shutil.rmtree(work, ignore_errors=True)
        if handle >= 0:
            os.close(handle)
        _living.discard(key)


def _work_folders(path: Path) -> list[Path]:
    """Those of our mark beside `path`.

    The marks of this process are not opened: to close one would give up the lock on it.
    """
    found = path.parent.glob(f".{glob.escape(path.name[:100])}.*.writing")
    return [work for work in found if (os.getpid(), str(work)) in _living or is_ours(work)]


def _sweep(path: Path) -> None:
    """Put back or remove what killed processes have left in their work folders."""
    recover(path)
    for work in _work_folders(path):
        if _is_dead(work):
            shutil.rmtree(work, ignore_errors=True)


def _is_dead(work: Path) -> bool:
    """Whether the process that made the work folder has ended."""
    if (os.getpid(), str(work)) in _living:
        return False
    try:
        handle = os.open(work / MARK, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:  # it has just gone, or is another user's
        return False
    try:
        # Its maker has made the file and does not hold the lock yet.
        locked = _lock(handle) if os.fstat(handle).st_size else None
        if locked is None:
            return time.time() - work.stat().st_mtime > _STALE_SECONDS
        return locked
    except FileNotFoundError:
        return False
    finally:
        os.close(handle)


def _lock(handle: int) -> Literal[True, False, None]:
    """Whether this process now holds the file's lock until it closes the file or ends; None where
    the system has no such locks."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return None
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        return False
    return True


def _lock_beside(lock: Path) -> int | None:
    """A descriptor of `lock`, locked; None where another process holds it."""
    while True:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            handle = os.open(lock, flags, 0o666)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise
            raise UserError(
                f"{lock}: stands where vcompress keeps its lock. Move it elsewhere."
            ) from None
        locked = _lock(handle)
        if locked is False:
            os.close(handle)
            return None
        # The one who held it before may have removed it since it was opened here.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(lock, follow_symlinks=False)):  # noqa: PTH116
                return handle
        os.close(handle)


def _carry(old: Path, new: Path, goes: Collection[str], *, twice: bool = False) -> None:
    """Have in `new` what `old` holds besides `goes`: the same files by a second name, so that they
    are in one of the two at any moment.

    Args:
        twice: what `new` has already is passed over.

    Raises:
        UserError: `new` has something of the same name.
    """
    taken: list[str] = []
    made: list[Path] = []
    for top, folders, names in os.walk(old, topdown=False):
        within = Path(top).relative_to(old)
        links = [name for name in folders if (Path(top) / name).is_symlink()]
        stay = [name for name in [*names, *links] if (within / name).as_posix() not in goes]
        if not stay and (names or folders):
            continue
        made += [each for each in (within, *within.parents) if not (new / each).exists()]
        try:
            (new / within).mkdir(parents=True, exist_ok=True)
        except OSError:  # a file of the new folder has the name of the folder
            taken.append(within.as_posix())
            continue
        for name in stay:
            if os.path.lexists(new / within / name):
                taken.append((within / name).as_posix())
            else:
                _link(Path(top) / name, new / within / name)
    for each in dict.fromkeys(made):
        if (new / each).is_dir():
            shutil.copymode(old / each, new / each)
    if taken and not twice:
        raise UserError(
            f"{old}: holds {', '.join(sorted(taken)[:5])}, which its manifest does not name and "
            f"which would be replaced; nothing was written. Move it elsewhere."
        )


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without hard links, or another user's file
        shutil.copy2(source, target, follow_symlinks=False)


def _swap(work: Path, path: Path, goes: Collection[str]) -> None:
    """Put the new folder in the place of `path`. A kill between the renames is mended by `recover`,
    which puts the old one back."""
    new, old = work / "new", work / "old"
    for tries_left in reversed(range(_TRIES)):
        if path.exists():
            path.rename(old)
        try:
            new.rename(path)
            break
        except OSError as error:
            # Without locks a reader between the two renames took it for a kill.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not tries_left:
                raise
    sync(path.parent)
    if old.is_dir():
        with suppress(OSError):
            _carry(old, path, goes, twice=True)  # what was written there since it was carried
        old.rename(work / "gone")  # `recover` does not take this one
