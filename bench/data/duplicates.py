"""Duplicate images, found by their bytes with as little reading as possible."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

_TAIL_BYTES = 4096


def repeated_across(
    paths: Sequence[Path], sizes_bytes: Sequence[int], parts: Sequence[int]
) -> list[list[int]]:
    """Groups of files with the same bytes that lie in more than one part.

    In a large set nearly every size occurs twice, so of files of one size first the last 4 KiB are
    compared, and only where they agree the whole. A file that cannot be read is in no group.

    Args:
        paths, sizes_bytes, parts: of each file, the same length.

    Returns:
        Numbers of files, each group and the groups in ascending order.
    """
    groups: list[list[int]] = [list(range(len(paths)))]
    keys: tuple[Callable[[int], Hashable], ...] = (
        lambda i: sizes_bytes[i],
        lambda i: _digest(paths[i], _TAIL_BYTES),
        lambda i: _digest(paths[i], None),
    )
    for key in keys:
        groups = [part for group in groups for part in _split(group, key, parts)]
    return sorted(groups)


def _split(
    group: Iterable[int], key: Callable[[int], Hashable], parts: Sequence[int]
) -> list[list[int]]:
    """`group` by `key`; only what still lies in more than one part."""
    found: defaultdict[Hashable, list[int]] = defaultdict(list)
    for i in group:
        found[key(i)].append(i)
    found.pop(None, None)
    return [members for members in found.values() if len({parts[i] for i in members}) > 1]


def _digest(path: Path, last_bytes: int | None) -> bytes | None:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            if last_bytes is not None:
                stream.seek(0, 2)
                stream.seek(max(0, stream.tell() - last_bytes))
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError:
        return None
    return digest.digest()
