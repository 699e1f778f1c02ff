"""Makes one entry of a bundle's history: options, inputs, versions, metrics."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from typing import Any

from vcompress.bench.bundle.history import Entry
from vcompress.bench.config import plain

from ..models.catalogue import ModelSpec
from ..options import Options

_PACKAGES = (
    "vision-compress", "torch", "torchvision", "timm", "transformers", "onnx", "onnxruntime",
    "torch-pruning",
)  # fmt: skip


def record_entry(
    method: str, spec: ModelSpec, config: Mapping[str, Any], options: Options
) -> Entry:
    """An entry that begins now, with what every command says of itself."""
    return Entry(
        stage=method,
        model=spec.name,
        config=plain(config),
        options=plain(asdict(options)),
        seed=options.seed,
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=_versions(),
    )


def loaded_packages() -> dict[str, str]:
    """Version of every installed package of which this process has loaded something, by name."""
    loaded = {name.partition(".")[0] for name in sys.modules}
    found: dict[str, str] = {}
    for package in metadata.distributions():
        # As `metadata.packages_distributions`, which takes ten times as long.
        tops = (package.read_text("top_level.txt") or "").split() or [
            line.partition(",")[0].partition("/")[0].removesuffix(".py")
            for line in (package.read_text("RECORD") or "").splitlines()
        ]
        if not loaded.isdisjoint(tops):
            name = re.sub(r"[-_.]+", "-", package.metadata["Name"]).lower()
            found.setdefault(name, package.version)  # the first on the path is the one that loads
    return dict(sorted(found.items()))


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
