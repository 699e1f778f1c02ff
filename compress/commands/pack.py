"""`vcompress pack`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Command:
    """Pack a bundle into one file, with the same bytes every time; --sign signs it."""

    bundle: Annotated[Path, tyro.conf.Positional]
    """Folder of a bundle."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """File of the archive. Default: the folder's name with .vcb."""
    sign: Path | None = None
    """File of the private key (Ed25519, PEM) that signs; vcompress keygen makes one."""

    def run(self) -> None:
        from vcompress.bench.bundle import sha256
        from vcompress.bench.bundle.archive import pack

        out = self.out or Path(f"{self.bundle.resolve()}.vcb")
        pack(self.bundle, out, self.sign)
        print(f"{out}: {out.stat().st_size:,} bytes, sha256 {sha256(out)}")
