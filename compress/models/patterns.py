"""Finds the modules that a user names by path or by a pattern such as layer4.*."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from vcompress.bench.errors import UserError, nearest


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether one of `patterns` means the module at `path`, or a module that it lies in."""
    return any(fnmatchcase(path, p) or fnmatchcase(path, f"{p}.*") for p in patterns)


def check_patterns(option: str, patterns: Iterable[str], paths: Iterable[str]) -> None:
    """Raise a UserError for a pattern that means none of `paths`."""
    known = list(paths)
    for pattern in patterns:
        if not any(matches(path, (pattern,)) for path in known):
            raise UserError(
                f"{option}: {pattern!r} is no module of the network, and no pattern of one such as "
                f"layer4.*.{nearest(pattern, known)}"
            )
