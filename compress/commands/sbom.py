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
        from vcompress.bench.bundle.output import check_output, is_stream, write_text

        from ..bundles.sbom import bill_of_materials

        if self.out is not None:
            check_output(self.out, [self.bundle])
        text = bill_of_materials(Bundle.open(self.bundle))
        if self.out is None:
            print(text)
            return
        write_text(self.out, text, [self.bundle])
        if not is_stream(self.out):  # whose reader gets the list alone
            print(f"{self.out}: {len(text):,} bytes")
