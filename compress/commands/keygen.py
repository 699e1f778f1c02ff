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
    """The private key, such as release.pem; the public one stands beside it as release.pub.pem."""

    def run(self) -> None:
        from vcompress.bench.bundle.signature import make_keys

        public, name = make_keys(self.key)
        print(f"{self.key}: private key, keep it secret\n{public}: public key {name}")
