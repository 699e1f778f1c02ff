"""`vcompress unpack`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Command:
    """Unpack an archive into a bundle; nothing is written unless all of it is right."""

    archive: Annotated[Path, tyro.conf.Positional]
    """File that vcompress pack wrote."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder of the bundle. Default: the archive's name without .vcb, in the working directory."""
    key: Path | None = None
    """File of the public key that the signature must belong to."""
    expect: str | None = None
    """Name of the network that the archive must hold, or the SHA-256 of its manifest (12 digits or
    more)."""
    not_before: str | None = None
    """Earliest start of the last stage, such as 2026-11-01; UTC where no zone is said."""
    overwrite: bool = False
    """Replace a bundle that is already at --out."""

    def run(self) -> None:
        from vcompress.bench.bundle.archive import unpack
        from vcompress.bench.bundle.identity import Expected, identify
        from vcompress.bench.bundle.manifest import MANIFEST
        from vcompress.bench.errors import UserError
        from vcompress.bench.text import printable

        if self.out is None and not self.archive.suffix:
            raise UserError(f"{self.archive}: say with --out where the bundle goes.")
        out = self.out or Path(self.archive.stem)
        expected = Expected(self.expect, self.not_before)
        bundle = unpack(self.archive, out, self.key, overwrite=self.overwrite, expected=expected)
        print(printable(str(identify(bundle, (out / MANIFEST).read_bytes()))))
        print(f"{out}: {len(bundle.files)} files, {bundle.size_bytes:,} bytes, hashes agree")
