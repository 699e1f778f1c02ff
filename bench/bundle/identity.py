"""What a bundle is, in a line: the network, its last stage, when that began, the manifest's hash.

A signature says who made a bundle, and not which one it is: an older or another bundle of the same
key is signed as well. So what was signed is shown, and can be asked for.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime, timezone

from ..errors import UserError
from .bundle import Bundle

_HASH = re.compile("[0-9a-f]{12,64}")


@dataclass(frozen=True)
class Identity:
    """What the last entry of the history says."""

    model: str
    stage: str
    started: str
    """ISO 8601; empty where it is not recorded."""
    sha256: str
    """SHA-256 of manifest.json: no other bundle has it."""

    def __str__(self) -> str:
        return (
            f"{self.model or 'no name'}, {self.stage or 'no stage'}, "
            f"{self.started or 'no date'}, manifest {self.sha256}"
        )


@dataclass(frozen=True)
class Expected:
    """Which bundle the user wants."""

    name: str | None = None
    """The network's name, or the first 12 or more digits of the manifest's SHA-256."""
    not_before: str | None = None
    """Earliest start of the last stage, ISO 8601, such as 2026-11-01; UTC where no zone is said."""

    def __post_init__(self) -> None:
        if self.not_before is not None and _time(self.not_before) is None:
            raise UserError(
                f"--not-before {self.not_before!r}: expected a date such as 2026-11-01, or with a "
                f"time such as 2026-11-01T12:00:00."
            )

    def problems(self, found: Identity) -> list[str]:
        """What is not as expected."""
        wrong = []
        if self.name is not None and self.name != found.model:
            given = self.name.lower().removeprefix("sha256:")
            if not _HASH.fullmatch(given) or not found.sha256.startswith(given):
                wrong.append(f"expected {self.name}, but this is {found}")
        earliest = None if self.not_before is None else _time(self.not_before)
        if earliest is not None:
            started = _time(found.started)
            if started is None or started < earliest:
                wrong.append(
                    f"made {found.started or 'at an unknown time'}, before {self.not_before}: an "
                    f"older bundle ({found})"
                )
        return wrong


ANY = Expected()
"""Any bundle is as good as another."""


def identify(bundle: Bundle, manifest: bytes) -> Identity:
    """The identity of `bundle`, whose manifest has these bytes."""
    sha256 = hashlib.sha256(manifest).hexdigest()
    if not bundle.history:
        return Identity("", "", "", sha256)
    last = bundle.history[-1]
    return Identity(last.model, last.stage, last.started or "", sha256)


def _time(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=timezone.utc)
