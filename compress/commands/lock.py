"""`vcompress lock`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Command:
    """List the packages that a device installs, with versions and hashes, for pip.

    pip looks for them as on the device. There `pip install --require-hashes -r FILE` takes these
    archives and no others.
    """

    wheel: Annotated[Path, tyro.conf.Positional]
    """Wheel of vision-compress, which `pip wheel --no-deps --wheel-dir dist .` makes in the source
    folder."""
    extra: tuple[Literal["cpu", "cuda", "rtx", "openvino"], ...] = ("cpu",)
    """Runtimes of the device."""
    bundle: Path | None = None
    """Bundle whose last stage's versions the device takes. Default: the newest that fit."""
    platform: tuple[str, ...] = ()
    """Tags of the device's platform, such as manylinux_2_28_aarch64. Default: this machine."""
    python: str | None = None
    """Version of Python on the device, such as 3.11. Default: this one."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """File of the list. Default: the terminal."""

    def run(self) -> None:
        from vcompress.bench.bundle import Bundle
        from vcompress.bench.bundle.output import check_output, is_stream, write_text

        from ..delivery.lock import as_requirements, locked

        read = [self.wheel] if self.bundle is None else [self.wheel, self.bundle]
        if self.out is not None:
            check_output(self.out, read)
        bundle = None if self.bundle is None else Bundle.open(self.bundle)
        packages = locked(
            self.wheel, self.extra, bundle=bundle, platforms=self.platform, python=self.python
        )
        text = as_requirements(packages)
        if self.out is None:
            print(text, end="")
            return
        write_text(self.out, text, read)
        if not is_stream(self.out):  # whose reader gets the list alone
            print(f"{self.out}: {len(packages)} packages")
