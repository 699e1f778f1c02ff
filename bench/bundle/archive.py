"""A bundle as one file: the same bundle gives the same bytes, and nothing else is ever taken.

The format is a plain tar (POSIX ustar), because every system unpacks one and because it has no
second description of its content (a zip has two, and readers differ in which they believe) and no
compression: weights hardly compress, and what cannot grow cannot be a bomb. `pack` writes one
spelling only: `manifest.json`, `manifest.sha256`, `manifest.sig` where it is signed, then the files
by name, all with mode 644, owner 0 and time 0. `unpack` takes no other: from the manifest it knows
each following header and the length of the whole, byte for byte, before it writes anything. So a
link, a device, a path outside, a double name, a wrong size or trailing data has no place to stand.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import UserError
from . import manifest as manifests
from . import signature as signatures
from .atomic import staged_folder
from .bundle import (
    Bundle,
    check_target,
    from_manifest,
    is_bundle,
    read_manifest,
    replaced,
    strangers,
)
from .identity import ANY, Expected, identify
from .manifest import MANIFEST, SEAL, SIGNATURE
from .output import written

BLOCK = 512
END = bytes(2 * BLOCK)
_CHUNK_BYTES = 1 << 20
_LARGEST_BYTES = 8**11 - 1


@dataclass(frozen=True)
class _Head:
    """What stands at the head of an archive, of which no file has been read yet."""

    bundle: Bundle
    """Its path is that of the archive: `file` is not for it."""
    manifest: bytes
    signature: bytes | None


def pack(folder: Path, out: Path, sign: Path | None = None) -> None:
    """Write the bundle in `folder` as one file to `out`, signed with the private key `sign`.

    Every file's hash is checked on the way. A bundle that is signed already keeps its signature.

    Raises:
        UserError: the bundle was changed or holds files that its manifest does not name, or `out`
            is something else than an archive of ours. What was at `out` is untouched then.
        EnvironmentLacks: `cryptography` is missing.
    """
    # Read once: what is packed as the manifest is what the files are held against.
    manifest, seal = read_manifest(folder)
    bundle = from_manifest(folder, manifest, seal)
    if left := strangers(bundle):
        raise UserError(
            f"{folder}: holds {', '.join(left[:5])}, which its manifest does not name. Move "
            f"{'them' if len(left) > 1 else 'it'} elsewhere; an archive holds the bundle alone."
        )
    _check_out(folder, out)
    signed = manifests.read_beside(folder, SIGNATURE)
    if sign is not None:
        signed = signatures.sign(manifest, sign)
    elif signed is not None:
        signatures.parse(signed, str(folder / SIGNATURE))
    with written(out, [folder]) as stream:
        # An older bundle, whose manifest has no hash, gets one here.
        _write(stream, MANIFEST, manifest)
        _write(stream, SEAL, manifests.seal_of(manifest))
        if signed is not None:
            _write(stream, SIGNATURE, signed)
        for name in sorted(bundle.files):
            stream.write(header(name, bundle.files[name].bytes))
            _pack_file(bundle, name, stream)
            stream.write(_padding(bundle.files[name].bytes))
        stream.write(END)


def unpack(
    archive: Path, out: Path, key: Path | None = None, *, overwrite: bool = False,
    expected: Expected = ANY,
) -> Bundle:  # fmt: skip
    """Write the bundle in `archive` to the folder `out`, whole or not at all.

    Args:
        key: file with the public key that the archive must be signed with.
        overwrite: replace a bundle that is at `out`.
        expected: which bundle it must be.

    Raises:
        UserError: `archive` is not as `pack` writes it, byte for byte, is not signed by `key`, or
            `out` is something else than a bundle or an empty folder. Nothing is written then.
        EnvironmentLacks: `cryptography` is missing.
    """
    with _open(archive) as stream:
        packed = _read_head(archive, stream)
        if key is not None:
            held = packed.signature
            said = None if held is None else signatures.parse(held, str(archive))
            signatures.check(said, packed.manifest, key, str(archive))
        if wrong := expected.problems(identify(packed.bundle, packed.manifest)):
            raise UserError(f"{archive}: {'; '.join(wrong)}. Nothing was written.")
        check_target(out)
        if is_bundle(out) and not overwrite:
            raise UserError(f"{out}: there is a bundle already. Give --overwrite or another --out.")
        with staged_folder(out, replaced) as staging:
            (staging / MANIFEST).write_bytes(packed.manifest)
            (staging / SEAL).write_bytes(manifests.seal_of(packed.manifest))
            if packed.signature is not None:
                (staging / SIGNATURE).write_bytes(packed.signature)
            for name, entry in sorted(packed.bundle.files.items()):
                _expect(archive, stream, header(name, entry.bytes), name)
                target = staging / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as file:
                    digest = _pass_on(stream, file, entry.bytes)
                if digest != entry.sha256:
                    raise UserError(
                        f"{archive}: {name} was changed after it was packed (its SHA-256 differs). "
                        f"Nothing was written. Copy the archive again."
                    )
                _expect(archive, stream, _padding(entry.bytes), name)
            _expect(archive, stream, END, "its end")
    return Bundle.open(out)


def is_archive(path: Path) -> bool:
    """Whether the file begins as an archive does."""
    try:
        with _open(path) as stream:
            return stream.read(len(MANIFEST) + 1) == MANIFEST.encode() + b"\0"
    except (UserError, OSError):
        return False


def header(name: str, size_bytes: int) -> bytes:
    """The one ustar header, 512 bytes, of a plain file (IEEE Std 1003.1, pax, "ustar Interchange
    Format").

    Raises:
        UserError: a name or a size that ustar has no place for.
    """
    prefix, short = _split(name.encode())
    if size_bytes > _LARGEST_BYTES:
        raise UserError(f"{name}: {size_bytes:,} bytes; an archive takes 8 GiB a file.")
    fields = b"".join(
        (
            short.ljust(100, b"\0"),
            b"0000644\0",
            b"0000000\0",
            b"0000000\0",
            b"%011o\0" % size_bytes,
            b"00000000000\0",
            b" " * 8,  # the checksum, counted as spaces
            b"0",
            bytes(100),
            b"ustar\x0000",
            bytes(32 + 32 + 8 + 8),
            prefix.ljust(155, b"\0"),
            bytes(12),
        )
    )
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


def _split(name: bytes) -> tuple[bytes, bytes]:
    if len(name) <= 100:
        return b"", name
    place = name.find(b"/", len(name) - 101)
    if place <= 0 or place > 155 or place == len(name) - 1:
        raise UserError(
            f"{name.decode()}: the name is too long for an archive (100 bytes, 255 with folders)."
        )
    return name[:place], name[place + 1 :]


def _padding(size_bytes: int) -> bytes:
    return bytes(-size_bytes % BLOCK)


def _length(files: Iterator[int]) -> int:
    return sum(BLOCK + size + -size % BLOCK for size in files) + len(END)


def _write(stream: BinaryIO, name: str, content: bytes) -> None:
    stream.write(header(name, len(content)) + content + _padding(len(content)))


def _pack_file(bundle: Bundle, name: str, stream: BinaryIO) -> None:
    source, entry = bundle.plain_file(name), bundle.files[name]
    with source.open("rb") as file:
        if _pass_on(file, stream, entry.bytes) != entry.sha256 or file.read(1):
            raise UserError(f"{source}: changed after it was written. Write the bundle again.")


def _pass_on(source: BinaryIO, target: BinaryIO, size_bytes: int) -> str:
    """Copy so many bytes, or as many as there are, and give their SHA-256."""
    digest = hashlib.sha256()
    while chunk := source.read(min(_CHUNK_BYTES, size_bytes)):
        digest.update(chunk)
        target.write(chunk)
        size_bytes -= len(chunk)
    return digest.hexdigest()


@contextmanager
def _open(archive: Path) -> Iterator[BinaryIO]:
    try:
        mode = archive.stat().st_mode
    except FileNotFoundError:
        raise UserError(f"{archive}: no such archive. Expected a file of vcompress pack.") from None
    if not stat.S_ISREG(mode):  # a pipe could be waited on for ever
        kind = "a folder" if stat.S_ISDIR(mode) else "no plain file"
        raise UserError(f"{archive}: {kind}. Expected a file that vcompress pack wrote.")
    with archive.open("rb") as stream:
        yield stream


def _read_head(archive: Path, stream: BinaryIO) -> _Head:
    size = os.fstat(stream.fileno()).st_size
    first = stream.read(BLOCK)
    if not first.startswith(MANIFEST.encode() + b"\0"):
        raise UserError(
            f"{archive}: not an archive that vcompress pack wrote (it begins with "
            f"{first[:16]!r}). Expected a .vcb file."
        )
    digits = first[124:135]
    length = int(digits, 8) if digits.isdigit() and not set(digits) & set(b"89") else -1
    if length < 0 or header(MANIFEST, length) != first:
        raise _not_ours(archive, MANIFEST)
    if length > manifests.LIMIT_BYTES:
        raise UserError(f"{archive}: {MANIFEST} of {length:,} bytes; too large for a manifest.")
    manifest = stream.read(length)
    if len(manifest) != length:
        raise _cut_off(archive, size)
    _expect(archive, stream, _padding(length), MANIFEST)
    seal = manifests.seal_of(manifest)
    _expect(archive, stream, header(SEAL, len(seal)), SEAL)
    bundle = from_manifest(archive, manifest, _take(archive, stream, len(seal)))
    _expect(archive, stream, _padding(len(seal)), SEAL)
    signature = None
    place = stream.tell()
    if stream.read(BLOCK) == header(SIGNATURE, signatures.SIZE_BYTES):
        signature = _take(archive, stream, signatures.SIZE_BYTES)
        signatures.parse(signature, f"{archive}: {SIGNATURE}")
        _expect(archive, stream, _padding(len(signature)), SIGNATURE)
    else:
        stream.seek(place)
    expected = stream.tell() + _length(entry.bytes for entry in bundle.files.values())
    if size < expected:
        raise _cut_off(archive, size, expected)
    if size > expected:
        raise UserError(
            f"{archive}: {size - expected:,} bytes more than its manifest accounts for "
            f"({size:,}, expected {expected:,}). Pack the bundle again."
        )
    return _Head(bundle, manifest, signature)


def _take(archive: Path, stream: BinaryIO, count: int) -> bytes:
    found = stream.read(count)
    if len(found) != count:
        raise _cut_off(archive, os.fstat(stream.fileno()).st_size)
    return found


def _expect(archive: Path, stream: BinaryIO, expected: bytes, name: str) -> None:
    if _take(archive, stream, len(expected)) != expected:
        raise _not_ours(archive, name)


def _not_ours(archive: Path, name: str) -> UserError:
    return UserError(
        f"{archive}: {name} does not stand there as vcompress pack writes it. The archive was "
        f"changed, or another tool made it. Nothing was written."
    )


def _cut_off(archive: Path, size: int, expected: int | None = None) -> UserError:
    wanted = f", expected {expected:,}" if expected else ""
    return UserError(f"{archive}: cut off ({size:,} bytes{wanted}). Copy it again.")


def _check_out(folder: Path, out: Path) -> None:
    if out.is_dir() or (out.exists() and not is_archive(out)):
        raise UserError(
            f"{out}: there is something else than an archive; nothing was written. Give another "
            f"--out."
        )
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{out}: lies in the bundle itself. Give an --out outside {folder}.")
