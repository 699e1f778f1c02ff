"""`vcompress sbom`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Command:
    """Write the bill of materials of a bundle: model, data, packages, licences (CycloneDX 1.6)."""

    bundle: Annotated[Path, tyro.conf.Positional]
    """Folder of a bundle."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """File of the JSON. Default: the terminal."""

    def run(self) -> None:
        from vcompress.bench.bundle import Bundle
        from vcompress.bench.bundle.atomic import staged_file
        from vcompress.bench.errors import UserError

        from ..bundles.sbom import bill_of_materials

        if self.out is not None and self.out.is_dir():
            raise UserError(f"{self.out}: a folder; give the name of a file.")
        text = bill_of_materials(Bundle.open(self.bundle))
        if self.out is None:
            print(text)
            return
        with staged_file(self.out) as stream:
            stream.write(text.encode())
        print(f"{self.out}: {len(text):,} bytes")
