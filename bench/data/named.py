"""Which places on this machine the user has named as data.

A bundle records where its images lie, and a bundle may come from anybody. What lies neither in the
working folder nor in the bundle is opened for a record only where the user has named it before:
with `--data` or `--data-root`, in a recipe, or in a call of the library. Each named place is an
empty file in `$XDG_STATE_HOME/vcompress/data` (`~/.local/state` by default), called after its hash.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from ..errors import UserError

TORCHVISION = "torchvision:"


class NotNamed(UserError):
    """A record leads to a place that the user has not named."""


def note(source: str, root: str | None) -> None:
    """Remember what the user has named. A folder that cannot be written to remembers nothing."""
    place = _place(source, root)
    with suppress(OSError, RuntimeError):  # RuntimeError: nobody's home is known
        _store().mkdir(parents=True, exist_ok=True)
        (_store() / _key(place)).touch()


def check(source: str, root: str | None, bundle: str) -> None:
    """Raise `NotNamed` where a record of `bundle` leads elsewhere than the user has.

    A link in the working folder is the user's own, so what it leads to is.
    """
    place = _place(source, root)
    if any(place.is_relative_to(_absolute(top)) for top in (os.curdir, bundle)):
        return
    with suppress(OSError, RuntimeError):
        if (_store() / _key(place)).exists():
            return
    option = f"--data {source}" + (f" --data-root {root}" if source.startswith(TORCHVISION) else "")
    raise NotNamed(
        f"{bundle}: records images in {place}, which is not in the working folder, and which you "
        f"have not named on this machine. Look whether it is yours, and give {option}."
    )


def _place(source: str, root: str | None) -> Path:
    return _absolute((root or os.curdir) if source.startswith(TORCHVISION) else source)


def _absolute(path: str) -> Path:
    """Links are followed only before `..`, which leads to where they point."""
    whole = Path(path)
    try:
        return whole.resolve() if os.pardir in whole.parts else whole.absolute()
    except (OSError, ValueError, RuntimeError):  # no name of a file
        return whole.absolute()


def _store() -> Path:
    given = os.environ.get("XDG_STATE_HOME")
    return (Path(given) if given else Path.home() / ".local" / "state") / "vcompress" / "data"


def _key(place: Path) -> str:
    return hashlib.sha256(str(place).encode("utf-8", "surrogatepass")).hexdigest()
