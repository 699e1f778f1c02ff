"""`vcompress inspect`: what is in a bundle and how it came to be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vcompress.bench.bundle import Bundle
from vcompress.bench.bundle.history import Entry
from vcompress.bench.text import printable

from ..bundles import licences
from ..reporting.terminal import print_history

_SHOWN_DETAILS = 160


def inspect(path: Path) -> None:
    """Print the bundle; every file's hash is checked.

    Raises:
        UserError: no bundle, a file that was changed, or a malformed history.
    """
    bundle = Bundle.open(path)
    bundle.verify()
    print_history(bundle)
    for line in _lines(bundle):
        print(printable(line))


def _lines(bundle: Bundle) -> Iterator[str]:
    size = bundle.preprocess.size
    yield ""
    yield f"task        {bundle.task}, {len(bundle.labels)} classes: {_some(bundle.labels)}"
    shape = ", ".join(map(str, bundle.input.shape))
    yield f"input       {bundle.input.name} [N, {shape}] {bundle.input.dtype}"
    yield (
        f"preprocess  {size[0]} x {size[1]} {bundle.preprocess.channels}, resize "
        f"{bundle.preprocess.resize}, {bundle.preprocess.interpolation}, mean "
        f"{bundle.preprocess.mean}, std {bundle.preprocess.std}"
    )
    if bundle.data is not None:
        splits = ", ".join(f"{name} {count:,}" for name, count in bundle.data["splits"].items())
        yield f"data        {bundle.data['source']}, seed {bundle.data['seed']}: {splits}"
    found = licences.recorded(bundle)
    yield f"licences    data {found.data}, weights {found.weights}"
    yield ""
    yield "history"
    for number, entry in enumerate(bundle.history, 1):
        yield from _entry_lines(number, entry)
    yield ""
    yield "files (hashes checked)"
    for name, file in sorted(bundle.files.items()):
        yield f"  {name:22} {file.bytes:>12,} bytes  {file.sha256[:16]}"


def _entry_lines(number: int, entry: Entry) -> Iterator[str]:
    yield (
        f"  {number}. {entry.stage} {entry.model}, {entry.started or ''}, "
        f"{entry.seconds or 0:.0f} s, seed {entry.seed}"
    )
    for role, source in entry.inputs.items():
        yield f"     {role}: {source.get('path') or source.get('name')}"
    config = entry.config.items()
    yield "     " + ", ".join(f"{k} {v}" for k, v in config if v not in (None, []))
    for key, value in entry.details.items():
        text = str(value)
        yield f"     {key}: {text[:_SHOWN_DETAILS]}{' ...' if len(text) > _SHOWN_DETAILS else ''}"
    yield f"     {', '.join(f'{name} {version}' for name, version in entry.versions.items())}"


def _some(labels: tuple[str, ...]) -> str:
    shown = ", ".join(labels[:10])
    return shown if len(labels) <= 10 else f"{shown}, ..."
