"""Makes one entry of a bundle's history: options, inputs, versions, metrics."""

from __future__ import annotations

import platform
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


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
