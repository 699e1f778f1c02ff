"""`vcompress keygen`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Command:
    """Make a pair of Ed25519 keys: the private one signs, devices get the public one."""

    key: Annotated[Path, tyro.conf.Positional]
    """File of the private key, such as release.pem; the public key goes to release.pub.pem."""

    def run(self) -> None:
        from vcompress.bench.bundle.signature import make_keys

        public, name = make_keys(self.key)
        print(f"{self.key}: private key, keep it secret\n{public}: public key {name}")
