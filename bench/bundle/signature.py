"""An Ed25519 signature (RFC 8032) of a bundle's manifest, and so of every file in the bundle.

The manifest holds the SHA-256 of every file, so a signature of its bytes covers all of them. It
lies beside the manifest as `manifest.sig`, five lines of text of which only one spelling is taken.
`cryptography` is imported only where a key is used.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import EnvironmentLacks, UserError, to_install
from .manifest import SIGNATURE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

# Signed before the manifest: a signature made for something else never holds for a bundle.
_PURPOSE = b"vcompress bundle manifest, signature 1\0"
_PATTERN = re.compile(
    rb"(vcompress-signature 1\nalgorithm ed25519\npublic-key ([0-9a-f]{64})\n"
    rb"signature ([0-9a-f]{128})\n)sha256 ([0-9a-f]{64})\n"
)
SIZE_BYTES = 22 + 18 + (11 + 64 + 1) + (10 + 128 + 1) + (7 + 64 + 1)
_KEY_LIMIT_BYTES = 1 << 16


@dataclass(frozen=True)
class Signature:
    """What `manifest.sig` says; nothing in it is proved before `check`."""

    public_key: bytes
    """32 bytes."""
    signature: bytes
    """64 bytes."""

    @property
    def signer(self) -> str:
        return fingerprint(self.public_key)


def fingerprint(public_key: bytes) -> str:
    """A short name of a public key: the beginning of its SHA-256."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def make_keys(private: Path) -> tuple[Path, str]:
    """Write a new private key to `private` (PEM, readable by its owner only) and the public one
    beside it as `.pub.pem`.

    Returns:
        The path of the public key, and its fingerprint.

    Raises:
        UserError: one of the files is there already, or `private` has the name of a public key.
        EnvironmentLacks: `cryptography` is missing.
    """
    _library()
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not private.name or private.is_dir():
        raise UserError(f"{private}: a folder; give the name of a file, such as release.pem.")
    if ".pub" in private.suffixes:
        raise UserError(
            f"{private}: named as a public key; it would hold the private one. Give a name such as "
            f"release.pem."
        )
    public = private.with_name(f"{private.stem}.pub.pem")
    key = Ed25519PrivateKey.generate()
    private.parent.mkdir(parents=True, exist_ok=True)
    secret = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    shown = key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
    _write_new(private, secret, 0o600)
    try:
        _write_new(public, shown, 0o644)
    except BaseException:
        private.unlink()  # a pair is written whole, and never mixed with another
        raise
    return public, fingerprint(key.public_key().public_bytes_raw())


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that is not there yet; of two processes one fails."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise UserError(f"{path}: there is a file already; a key is never replaced.") from None
    with os.fdopen(handle, "wb") as stream:
        os.fchmod(stream.fileno(), mode)  # whatever the umask
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def sign(manifest: bytes, private: Path) -> bytes:
    """What `manifest.sig` holds for these bytes of `manifest.json`. The same key and manifest give
    the same bytes.

    Raises:
        UserError: `private` is no Ed25519 private key.
        EnvironmentLacks: `cryptography` is missing.
    """
    key = _private_key(private)
    public = key.public_key().public_bytes_raw()
    made = key.sign(_PURPOSE + manifest)
    text = (
        f"vcompress-signature 1\nalgorithm ed25519\npublic-key {public.hex()}\n"
        f"signature {made.hex()}\n"
    ).encode()
    return text + f"sha256 {hashlib.sha256(text).hexdigest()}\n".encode()


def parse(content: bytes, where: str) -> Signature:
    """Read `manifest.sig`. Its own hash finds a changed byte even where no key is at hand.

    Raises:
        UserError: it is not as `sign` writes it.
    """
    found = _PATTERN.fullmatch(content)
    if found is None or hashlib.sha256(found[1]).hexdigest().encode() != found[4]:
        raise UserError(f"{where}: not a signature as vcompress writes it, or it was changed.")
    return Signature(bytes.fromhex(found[2].decode()), bytes.fromhex(found[3].decode()))


def check(signature: Signature | None, manifest: bytes, public: Path, where: str) -> str:
    """Hold the signature of `where` against the public key in the file `public`.

    Returns:
        The key's fingerprint.

    Raises:
        UserError: no signature, one of another key, or one of another manifest.
        EnvironmentLacks: `cryptography` is missing.
    """
    key = read_public(public)
    raw = key.public_bytes_raw()
    if signature is None:
        raise UserError(
            f"{where}: not signed (no {SIGNATURE}), and --key asks for a signature. Sign it with: "
            f"vcompress pack BUNDLE -o model.vcb --sign KEY.pem"
        )
    if signature.public_key != raw:
        raise UserError(
            f"{where}: signed by the key {signature.signer}, not by {fingerprint(raw)} of "
            f"{public}. Take the bundle from its maker, or give the maker's public key."
        )
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature.signature, _PURPOSE + manifest)
    except InvalidSignature:
        raise UserError(
            f"{where}: the signature does not belong to this manifest: one of the two was changed. "
            f"Take the bundle from its maker again."
        ) from None
    return fingerprint(raw)


def _library() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise EnvironmentLacks(
            f"signatures need the package cryptography, which cannot be imported ({error}). "
            f"Install it: {to_install('release')}."
        ) from None


def _read_key(path: Path) -> bytes:
    try:
        if path.stat().st_size > _KEY_LIMIT_BYTES or not path.is_file():
            raise UserError(f"{path}: not a key file; expected PEM text.")
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such key. Make a pair with: vcompress keygen KEY.pem"
        ) from None


def _private_key(path: Path) -> Ed25519PrivateKey:
    _library()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = _read_key(path)
    try:
        key = load_pem_private_key(content, None)
    except TypeError:
        raise UserError(
            f"{path}: the key is encrypted; signing takes one without a password. Decrypt it with: "
            f"openssl pkey -in {path} -out KEY.pem"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise UserError(
            f"{path}: no private key in PEM. Make one with: vcompress keygen KEY.pem"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path}: a key of another kind; expected Ed25519.")
    return key


def read_public(path: Path) -> Ed25519PublicKey:
    """The public key in the file `path`.

    Raises:
        UserError: there is none.
        EnvironmentLacks: `cryptography` is missing.
    """
    _library()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = _read_key(path)
    if b"PRIVATE KEY" in content:
        raise UserError(f"{path}: a private key; --key takes the public one (.pub.pem).")
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        raise UserError(f"{path}: no public key in PEM.") from None
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"{path}: a key of another kind; expected Ed25519.")
    return key
