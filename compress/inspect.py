"""`vcompress inspect`: what is in a bundle and how it came to be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vcompress.bench.bundle import Bundle

from .table import print_history

_SHOWN_DETAILS = 160


def inspect(path: Path) -> None:
    """Print the bundle; every file's hash is checked.

    Raises:
        UserError: no bundle, or a file that was changed.
    """
    bundle = Bundle.open(path)
    bundle.verify()
    size = bundle.preprocess.size
    print_history(bundle)
    print(f"\ntask        {bundle.task}, {len(bundle.labels)} classes: {_some(bundle.labels)}")
    print(f"input       {bundle.input.name} [N, {', '.join(map(str, bundle.input.shape))}] "
          f"{bundle.input.dtype}")  # fmt: skip
    print(f"preprocess  {size[0]} x {size[1]} {bundle.preprocess.channels}, resize "
          f"{bundle.preprocess.resize}, {bundle.preprocess.interpolation}, mean "
          f"{bundle.preprocess.mean}, std {bundle.preprocess.std}")  # fmt: skip
    if bundle.data is not None:
        splits = ", ".join(f"{name} {count:,}" for name, count in bundle.data["splits"].items())
        print(f"data        {bundle.data['source']}, seed {bundle.data['seed']}: {splits}")
    print("\nhistory")
    for number, entry in enumerate(bundle.history, 1):
        _print_entry(number, entry)
    print("\nfiles (hashes checked)")
    for name, file in sorted(bundle.files.items()):
        print(f"  {name:22} {file.bytes:>12,} bytes  {file.sha256[:16]}")


def _print_entry(number: int, entry: Mapping[str, Any]) -> None:
    print(f"  {number}. {entry['stage']} {entry['model']}, {entry.get('started', '')}, "
          f"{entry.get('seconds', 0):.0f} s, seed {entry.get('seed')}")  # fmt: skip
    for role, source in entry.get("inputs", {}).items():
        print(f"     {role}: {source.get('path') or source.get('name')}")
    config = ", ".join(
        f"{k} {v}" for k, v in entry.get("config", {}).items() if v not in (None, [])
    )
    print(f"     {config}")
    for key, value in entry.get("details", {}).items():
        text = str(value)
        print(f"     {key}: {text[:_SHOWN_DETAILS]}{' ...' if len(text) > _SHOWN_DETAILS else ''}")
    versions = entry.get("versions", {})
    print(f"     {', '.join(f'{name} {version}' for name, version in versions.items())}")


def _some(labels: tuple[str, ...]) -> str:
    shown = ", ".join(labels[:10])
    return shown if len(labels) <= 10 else f"{shown}, ..."
