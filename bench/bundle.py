"""The bundle: a directory, the only thing that passes between commands.

It holds `manifest.json` (input specification, preprocessing, labels, data, the history of stages,
a SHA-256 for every file) beside `weights.safetensors`, `architecture.json`, `model.onnx`,
`golden.npz` and `report.html`. It never holds a pickle, and it is written whole or not at all.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from .errors import UserError

FORMAT = "vcompress-bundle"
SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
_STALE_SECONDS = 24 * 3600
_MANIFEST_LIMIT_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Preprocess:
    """From an image to the network's input. It travels with the model."""

    size: tuple[int, int]
    """Height and width of the network's input, pixels."""
    resize: int | None = None
    """Shorter side before the centre crop, pixels; None resizes straight to `size`."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Per channel, on values from 0 to 1."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    channels: Literal["RGB", "L"] = "RGB"
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        count = 3 if self.channels == "RGB" else 1
        if len(self.mean) != count or len(self.std) != count:
            raise UserError(
                f"preprocess: {self.channels} has {count} channels, but mean has "
                f"{len(self.mean)} values and std {len(self.std)}; give {count} of each."
            )
        if len(self.size) != 2 or not all(1 <= side <= 16384 for side in self.size):
            raise UserError(
                f"preprocess: size = {self.size}; expected [height, width], each 1 to 16384."
            )
        if self.resize is not None and self.resize < max(self.size):
            raise UserError(
                f"preprocess: resize = {self.resize} is smaller than the crop {self.size}; "
                f"give at least {max(self.size)}."
            )
        if not all(0 < value < float("inf") for value in self.std):
            raise UserError(f"preprocess: std = {self.std}; each must be above 0.")
        if not all(abs(value) < float("inf") for value in self.mean):
            raise UserError(f"preprocess: mean = {self.mean}; each must be a finite number.")


IMAGENET = Preprocess(size=(224, 224), resize=256)


@dataclass(frozen=True)
class InputSpec:
    """What the network takes: a batch of `shape` in `dtype` under the ONNX input `name`."""

    name: str
    shape: tuple[int, int, int]
    """Channels, height, width."""
    dtype: Literal["float32", "float16"] = "float32"


@dataclass(frozen=True)
class FileEntry:
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. `open` checks the manifest; `file` checks the hash of what it hands out."""

    path: Path
    input: InputSpec
    preprocess: Preprocess
    labels: tuple[str, ...]
    files: Mapping[str, FileEntry]
    task: str = "classification"
    data: Mapping[str, Any] | None = None
    """Where the held-out images come from: source, root, seed, fingerprint, sizes of the splits."""
    history: tuple[Mapping[str, Any], ...] = ()
    """One entry a stage: its name, config, details, metrics, seed, package versions."""
    manifest: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Read and check the manifest of the bundle at `path`.

        Raises:
            UserError: no bundle there, a manifest that is not valid, or one of a newer schema.
        """
        from .config import from_mapping

        path = Path(path)
        _recover(path)
        if not path.is_dir():
            raise UserError(f"{path}: no such bundle. Expected a directory written by vcompress.")
        manifest = _read_manifest(path)
        where = str(path / MANIFEST)
        if manifest.get("format") != FORMAT:
            raise UserError(f"{where}: format is {manifest.get('format')!r}, expected {FORMAT!r}.")
        if manifest.get("schema_version") != SCHEMA_VERSION:
            raise UserError(
                f"{where}: schema_version is {manifest.get('schema_version')!r}; this version of "
                f"vcompress reads {SCHEMA_VERSION}. Use the version that wrote it."
            )
        body = {
            key: value for key, value in manifest.items() if key not in ("format", "schema_version")
        }
        bundle = from_mapping(_Body, body, where)
        for name in bundle.files:
            _check_name(name, where)
        for number, entry in enumerate(bundle.history):
            if not (isinstance(entry.get("stage"), str) and isinstance(entry.get("model"), str)):
                raise UserError(f"{where}: history[{number}] names no stage and model.")
        return cls(
            path, bundle.input, bundle.preprocess, bundle.labels, bundle.files,
            bundle.task, manifest.get("data"), bundle.history, manifest,
        )  # fmt: skip

    def file(self, name: str) -> Path:
        """The path of the file `name`, after its size and SHA-256 were checked."""
        entry = self.files.get(name)
        if entry is None:
            raise UserError(
                f"{self.path}: the bundle has no {name}; it has {', '.join(sorted(self.files))}."
            )
        target = self.path / name
        if target.is_symlink() or not target.is_file():
            raise UserError(f"{target}: the manifest names this file, but it is not there.")
        size = target.stat().st_size
        if size != entry.bytes or sha256(target) != entry.sha256:
            raise UserError(
                f"{target}: changed after it was written ({size:,} bytes, the manifest says "
                f"{entry.bytes:,}; the SHA-256 differs). Write the bundle again."
            )
        return target

    def verify(self) -> None:
        """Check every file; raises UserError on the first that differs."""
        for name in self.files:
            self.file(name)

    @property
    def size_bytes(self) -> int:
        return sum(entry.bytes for entry in self.files.values())


@dataclass(frozen=True)
class _DataRecord:
    """What `Dataset.record` gives."""

    source: str
    seed: int
    fingerprint: str
    splits: dict[str, int]
    root: str | None = None


@dataclass(frozen=True)
class _Body:
    """The manifest as it stands in the file, for the checks."""

    input: InputSpec
    preprocess: Preprocess
    labels: tuple[str, ...]
    files: dict[str, FileEntry]
    task: str = "classification"
    data: _DataRecord | None = None
    history: tuple[dict[str, Any], ...] = ()


def find_bundle(model: str | Path) -> Bundle | None:
    """The bundle that the model file lies in, or None."""
    folder = Path(model).resolve().parent
    return Bundle.open(folder) if is_bundle(folder) else None


def is_bundle(path: str | Path) -> bool:
    path = Path(path)
    try:
        _recover(path)
        return path.is_dir() and _read_manifest(path).get("format") == FORMAT
    except (UserError, OSError):  # such as a name longer than the file system takes
        return False


@contextmanager
def create(
    path: str | Path,
    *,
    input: InputSpec,
    preprocess: Preprocess,
    labels: tuple[str, ...],
    data: Mapping[str, Any] | None,
    history: tuple[Mapping[str, Any], ...],
    task: str = "classification",
) -> Iterator[Path]:
    """Yield an empty directory to fill; at the end it becomes the bundle at `path`, whole.

    The directory is a sibling of `path`; every file is hashed and synced before one rename puts it
    in place. If the body raises, nothing is left behind and an older bundle at `path` is untouched.

    Raises:
        UserError: `path` is something else than a bundle or an empty directory.
    """
    path = Path(path)
    check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".writing", dir=path.parent))
    try:
        yield staging
        files: dict[str, Any] = {}
        for file in sorted(p for p in staging.rglob("*") if p.is_file()):
            _sync(file)
            name = file.relative_to(staging).as_posix()
            files[name] = asdict(FileEntry(sha256(file), file.stat().st_size))
        manifest = {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "task": task,
            "input": asdict(input),
            "preprocess": asdict(preprocess),
            "labels": list(labels),
            "data": data,
            "history": list(history),
            "files": files,
        }
        text = json.dumps(manifest, indent=2, allow_nan=False) + "\n"
        (staging / MANIFEST).write_text(text, encoding="utf-8")
        _sync(staging / MANIFEST)
        _sync(staging)
        staging.chmod(0o755)
        _swap(staging, path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def check_target(path: Path) -> None:
    """Raise a UserError when a bundle cannot be written at `path` without losing something."""
    _recover(path)
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise UserError(f"{path}: this is a file; give another --out.")
    if path.is_dir() and any(path.iterdir()) and not is_bundle(path):
        raise UserError(
            f"{path}: the directory is not empty and is not a bundle; nothing was written. "
            f"Give another --out."
        )


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        if file.stat().st_size > _MANIFEST_LIMIT_BYTES:
            raise UserError(f"{file}: larger than {_MANIFEST_LIMIT_BYTES:,} bytes; not a manifest.")
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise UserError(
            f"{path}: not a bundle (no {MANIFEST}). Expected a directory written by vcompress."
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not valid JSON ({error}).") from None
    if not isinstance(manifest, dict):
        raise UserError(f"{file}: expected a JSON object.")
    return manifest


def _check_name(name: str, where: str) -> None:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or "\\" in name or "\0" in name or ".." in parts:
        raise UserError(f"{where}: the file name {name!r} points outside the bundle; refused.")


def _sweep(path: Path) -> None:
    """Remove what a killed run left half-written; a living one is younger than a day."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.writing"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


def _previous(path: Path) -> Path:
    return path.parent / f".{path.name}.previous"


def _swap(staging: Path, path: Path) -> None:
    """Put `staging` in the place of `path`. A kill between the renames is mended by `_recover`."""
    previous = _previous(path)
    if path.exists():
        shutil.rmtree(previous, ignore_errors=True)
        path.rename(previous)
    staging.rename(path)
    _sync(path.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _recover(path: Path) -> None:
    previous = _previous(path)
    if path.name and not path.exists() and previous.is_dir():
        previous.rename(path)


def _sync(path: Path) -> None:
    with suppress(OSError):  # some file systems cannot sync a directory
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
