"""The packages that a device installs, each with its exact version and the hash of its archive.

pip finds them (`--dry-run --report`) as it would on the device, and hashes what it would install.
With `pip install --require-hashes` the device takes those archives and no others, whoever has
changed an index, a mirror or a cache since.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from vcompress.bench.bundle import Bundle
from vcompress.bench.bundle.atomic import temporary_folder
from vcompress.bench.errors import EnvironmentLacks, UserError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Package:
    """An archive that is to be installed."""

    name: str
    version: str
    sha256: str
    file: str = ""
    """Name of the file where it comes from the disk and from no index."""


def locked(
    wheel: Path,
    extras: Sequence[str] = ("cpu",),
    *,
    bundle: Bundle | None = None,
    platforms: Sequence[str] = (),
    python: str | None = None,
) -> tuple[Package, ...]:
    """What `wheel[extras]` needs, by name; the wheel itself is among it.

    Args:
        bundle: whose last stage's versions are taken, of the packages that it ran.
        platforms: tags of the device, such as manylinux_2_28_aarch64; default: this machine.
        python: version of Python there, such as 3.11; default: this one.

    Raises:
        UserError: no such wheel, or pip finds no set of packages.
        EnvironmentLacks: there is no pip.
    """
    if not wheel.is_file() or wheel.suffix != ".whl":
        raise UserError(
            f"{wheel}: expected the wheel of vision-compress. Make it in the source folder: pip "
            "wheel --no-deps --wheel-dir dist ."
        )
    with temporary_folder() as folder:
        report, pins = folder / "report.json", folder / "pins.txt"
        pins.write_text("".join(f"{line}\n" for line in _pins(bundle)), encoding="utf-8")
        command = [
            sys.executable, "-I", "-m", "pip", "install", "--quiet", "--dry-run",
            "--ignore-installed", "--only-binary=:all:", "--report", str(report),
            "--constraint", str(pins), "--target", str(folder / "none"),
            *(f"--platform={tag}" for tag in platforms),
            *([f"--python-version={python}"] if python else []),
            f"{wheel.resolve()}[{','.join(extras)}]",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "No module named pip" in done.stderr:
            raise EnvironmentLacks(f"pip is missing: {sys.executable} -m ensurepip installs it.")
        if done.returncode != 0 or not report.is_file():
            raise UserError(f"pip finds no packages for {wheel.name}: {_reason(done.stderr)}")
        found = json.loads(report.read_text(encoding="utf-8"))
    packages = [_package(item) for item in found["install"]]
    return tuple(sorted(packages, key=lambda package: package.name.lower()))


def _pins(bundle: Bundle | None) -> list[str]:
    if bundle is None:
        return []
    if not bundle.history:
        raise UserError(f"{bundle.path}: its history is empty, so no versions are known.")
    ran = bundle.history[-1].packages
    return [
        f"{name}=={version}"
        for name, version in sorted(ran.items())
        if name != "vision-compress" and _NAME.fullmatch(name) and _VERSION.fullmatch(version)
    ]


def _reason(said: str) -> str:
    errors = [line.removeprefix("ERROR: ").strip() for line in said.splitlines() if "ERROR" in line]
    return (" ".join(errors) or said.strip())[:600]


def _package(item: dict[str, Any]) -> Package:
    name, version = item["metadata"]["name"], item["metadata"]["version"]
    info = item["download_info"]
    digest = info.get("archive_info", {}).get("hashes", {}).get("sha256", "")
    if not (_NAME.fullmatch(name) and _VERSION.fullmatch(version) and _SHA256.fullmatch(digest)):
        raise UserError(f"pip gives no hash of {name!r:.80} {version!r:.80}: it is no archive.")
    requested = bool(item.get("requested"))
    file = Path(unquote(urlsplit(info["url"]).path)).name if requested else ""
    return Package(name, version, digest, file)


def as_requirements(packages: Sequence[Package]) -> str:
    """The text of a file for `pip install --require-hashes -r`."""
    lines = ["# pip install --require-hashes -r THIS_FILE, in the folder of the wheel"]
    for package in packages:
        what = f"./{package.file}" if package.file else f"{package.name}=={package.version}"
        lines += [f"{what} \\", f"    --hash=sha256:{package.sha256}"]
    return "\n".join(lines) + "\n"
