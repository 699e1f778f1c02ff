"""The bundle: a directory, the only thing that passes between commands.

It holds `manifest.json` (input specification, preprocessing, labels, data, the history of stages,
a SHA-256 for every file) beside `manifest.sha256`, `weights.safetensors`, `architecture.json`,
`model.onnx`, `golden.npz` and `report.html`. It never holds a pickle, and it is written whole or
not at all.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import UserError
from . import manifest as manifests
from .atomic import recover, staged_folder
from .manifest import MANIFEST

if TYPE_CHECKING:
    from .history import Entry

FORMAT = "vcompress-bundle"
SCHEMA_VERSION = 1
MODEL, GOLDEN = "model.onnx", "golden.npz"
_CHUNK_BYTES = 1 << 20


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
    channels: Literal["RGB", "L", "RGBA"] = "RGB"
    """Colours, grey, or colours with a fourth channel, as Pillow calls them."""
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        count = {"L": 1, "RGB": 3, "RGBA": 4}[self.channels]
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

    @classmethod
    def of(cls, preprocess: Preprocess) -> InputSpec:
        """What a network takes whose images are prepared by `preprocess`."""
        return cls("input", (len(preprocess.mean), *preprocess.size))

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable():
            raise UserError(f"input: name = {self.name!r:.80}; expected a printable name.")
        if len(self.shape) != 3 or not all(1 <= size <= 16384 for size in self.shape):
            raise UserError(
                f"input: shape = {str(self.shape)[:80]}; expected channels, height, width, each "
                f"1 to 16384."
            )


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
    manifest: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Read and check the manifest of the bundle at `path`.

        Raises:
            UserError: no bundle there, a manifest that is not valid, or one of a newer schema.
        """
        path = Path(path)
        return from_manifest(path, *read_manifest(path))

    @cached_property
    def history(self) -> tuple[Entry, ...]:
        """One entry a stage. It is read when it is asked for: a prediction does not need it.

        Raises:
            UserError: a value that is missing or of another type.
        """
        from .history import read

        return read(self.manifest.get("history", ()), str(self.path / MANIFEST))

    @property
    def ships_in(self) -> str | None:
        """The runtime that the network was quantised for, as its last stage records; else None."""
        metrics = self.history[-1].metrics if self.history else None
        return metrics.latency.ships_in if metrics and metrics.latency else None

    def file(self, name: str) -> Path:
        """The path of the file `name`, after its size and SHA-256 were checked."""
        target = self.plain_file(name)
        entry = self.files[name]
        size = target.stat().st_size
        if size != entry.bytes or sha256(target) != entry.sha256:
            raise UserError(
                f"{target}: changed after it was written ({size:,} bytes, the manifest says "
                f"{entry.bytes:,}; the SHA-256 differs). Write the bundle again."
            )
        return target

    def plain_file(self, name: str) -> Path:
        """The path of the file `name`, which is there and reached by no link; not yet hashed."""
        if name not in self.files:
            raise UserError(
                f"{self.path}: the bundle has no {name}; it has {', '.join(sorted(self.files))}."
            )
        target = self.path / name
        between = list(target.parents)[: name.count("/")]
        if any(path.is_symlink() for path in (target, *between)) or not target.is_file():
            raise UserError(f"{target}: the manifest names this file, but it is not there.")
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
    on_bad_image: Literal["fail", "skip"] = "fail"
    numbered: bool = False


@dataclass(frozen=True)
class _Body:
    """The manifest as it stands in the file, for the checks; `Bundle.history` checks the rest."""

    input: InputSpec
    preprocess: Preprocess
    labels: tuple[str, ...]
    files: dict[str, FileEntry]
    task: str = "classification"
    data: _DataRecord | None = None
    history: tuple[dict[str, Any], ...] = ()


def read_manifest(path: Path) -> tuple[bytes, bytes | None]:
    """The bytes of the manifest at `path` and of its hash, None where there is none; unread.

    Raises:
        UserError: no bundle there.
    """
    recover(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such bundle. Expected a directory written by vcompress.")
    return manifests.read_sealed(path)


def from_manifest(path: Path, content: bytes, seal: bytes | None) -> Bundle:
    """What a manifest, of the bundle at `path`, says. Raises UserError where it is not valid."""
    from ..config import from_mapping

    where = str(path / MANIFEST)
    manifest = manifests.parse_sealed(content, seal, where)
    if manifest.get("format") != FORMAT:
        raise UserError(f"{where}: format is {manifest.get('format')!r:.80}, expected {FORMAT!r}.")
    version = manifest.get("schema_version")
    if version != SCHEMA_VERSION or type(version) is not int:
        raise UserError(
            f"{where}: schema_version is {version!r:.80}; this version of "
            f"vcompress reads {SCHEMA_VERSION}. Use the version that wrote it."
        )
    body = {
        key: value for key, value in manifest.items() if key not in ("format", "schema_version")
    }
    bundle = from_mapping(_Body, body, where)
    manifests.check_files(bundle.files, where)
    return Bundle(
        path, bundle.input, bundle.preprocess, bundle.labels, bundle.files,
        bundle.task, manifest.get("data"), manifest,
    )  # fmt: skip


def content_of(bundle: Bundle, name: str) -> bytes:
    """The bytes of the file `name`, read once: what was hashed is what is given.

    Raises:
        UserError: no such file, or a changed one.
    """
    target, entry = bundle.plain_file(name), bundle.files[name]
    digest, parts, size = hashlib.sha256(), list[bytes](), 0
    with target.open("rb", buffering=0) as stream:
        # No further than one byte too many: it may grow.
        while size <= entry.bytes and (part := stream.read(_CHUNK_BYTES)):
            digest.update(part)
            parts.append(part)
            size += len(part)
    if digest.hexdigest() != entry.sha256:
        raise UserError(
            f"{target}: changed after it was written (its SHA-256 differs). Write the bundle again."
        )
    return b"".join(parts)


def strangers(bundle: Bundle) -> list[str]:
    """What lies in the bundle's folder and is not named by the manifest: files, links, devices."""
    found: list[str] = []
    for top, folders, names in os.walk(bundle.path):
        links = [name for name in folders if (Path(top) / name).is_symlink()]
        found += [(Path(top) / name).relative_to(bundle.path).as_posix() for name in names + links]
    return sorted(set(found) - bundle.files.keys() - set(manifests.BESIDE))


def find_bundle(model: str | Path) -> Bundle | None:
    """The bundle that the model file lies in, itself or in `engines/`, or None."""
    folder = Path(model).resolve().parent
    folder = folder.parent if folder.name == "engines" else folder
    return Bundle.open(folder) if is_bundle(folder) else None


def is_bundle(path: str | Path) -> bool:
    """Whether there is a bundle, be it a damaged one: `Bundle.open` says what is wrong with it."""
    path = Path(path)
    try:
        recover(path)
        if not path.is_dir():
            return False
        content, _ = manifests.read_sealed(path)
        return manifests.parse(content, str(path)).get("format") == FORMAT
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
    history: Sequence[Entry],
    task: str = "classification",
) -> Iterator[Path]:
    """Yield an empty directory to fill; at the end it becomes the bundle at `path`, whole.

    Every file is hashed and synced before one rename puts the directory in place. Of an older
    bundle at `path` the files go that its manifest names; all others are carried over. If the body
    raises, nothing is left behind and `path` is untouched. `history` is read at the end: a list may
    still change while the directory is filled.

    Raises:
        UserError: `path` is something else than a bundle or an empty directory, another process
            writes there, or a file that would be carried over has the name of a new one.
    """
    from .history import to_json

    path = Path(path)
    check_target(path)
    with staged_folder(path, replaced) as staging:
        yield staging
        files = {
            file.relative_to(staging).as_posix(): FileEntry(sha256(file), file.stat().st_size)
            for file in sorted(p for p in staging.rglob("*") if p.is_file())
        }
        manifests.check_files(files, str(path))
        manifests.write(
            staging,
            {
                "format": FORMAT,
                "schema_version": SCHEMA_VERSION,
                "task": task,
                "input": asdict(input),
                "preprocess": asdict(preprocess),
                "labels": list(labels),
                "data": data,
                "history": [to_json(entry) for entry in history],
                "files": {name: asdict(entry) for name, entry in files.items()},
            },
        )


def check_target(path: Path) -> None:
    """Raise a UserError when a bundle cannot be written at `path` without losing something."""
    recover(path)
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise UserError(f"{path}: this is a file; give another --out.")
    if path.is_dir() and any(path.iterdir()) and not is_bundle(path):
        raise UserError(
            f"{path}: the directory is not empty and is not a bundle; nothing was written. "
            f"Give another --out."
        )


def replaced(path: Path) -> set[str]:
    """The files at `path` that a new bundle takes the place of: those that the manifest names.

    Raises:
        UserError: there is something else than a bundle or an empty directory.
    """
    check_target(path)
    if not path.is_dir() or not any(path.iterdir()):
        return set()
    content, _ = manifests.read_sealed(path)
    files = manifests.parse(content, str(path)).get("files")
    return {*manifests.BESIDE, *(files if isinstance(files, dict) else ())}


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb", buffering=0) as stream:
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()
