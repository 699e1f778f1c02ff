"""`vcompress inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Command:
    """Show what is in a bundle and its history; every file's hash is checked."""

    bundle: Annotated[Path, tyro.conf.Positional]
    """Folder of a bundle."""

    def run(self) -> None:
        from ._inspect import inspect

        inspect(self.bundle)
