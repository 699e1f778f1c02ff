"""Signatures: what holds, what does not, and keys that are none."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vcompress.bench.bundle import signature as s
from vcompress.bench.errors import EnvironmentLacks, UserError

pytest.importorskip("cryptography")

MANIFEST = b'{"format": "vcompress-bundle"}\n'


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    private = tmp_path / "keys" / "release.pem"
    public, _ = s.make_keys(private)
    return private, public


def test_a_signature_holds_for_its_manifest_and_its_key_alone(
    keys: tuple[Path, Path], tmp_path: Path
) -> None:
    private, public = keys
    text = s.sign(MANIFEST, private)
    assert len(text) == s.SIZE_BYTES
    assert text == s.sign(MANIFEST, private)
    found = s.parse(text, "here")
    assert s.check(found, MANIFEST, public, "here") == found.signer
    with pytest.raises(UserError, match="the signature does not belong to this manifest"):
        s.check(found, MANIFEST + b" ", public, "here")
    other, name = s.make_keys(tmp_path / "other.pem")
    with pytest.raises(UserError, match=f"signed by the key {found.signer}, not by {name}"):
        s.check(found, MANIFEST, other, "here")
    with pytest.raises(UserError, match=r"not signed \(no manifest\.sig\)"):
        s.check(None, MANIFEST, public, "here")


def test_every_changed_byte_of_a_signature_is_found_without_a_key(
    keys: tuple[Path, Path],
) -> None:
    text = s.sign(MANIFEST, keys[0])
    for place in range(len(text)):
        for bit in (1, 32):
            changed = text[:place] + bytes([text[place] ^ bit]) + text[place + 1 :]
            with pytest.raises(UserError, match="or it was changed"):
                s.parse(changed, "here")
    for cut in (b"", text[:-1], text + b"\n"):
        with pytest.raises(UserError, match="not a signature as vcompress writes it"):
            s.parse(cut, "here")


def test_a_signature_claimed_for_another_key_does_not_hold(
    keys: tuple[Path, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    s.make_keys(other)
    mine, theirs = s.parse(s.sign(MANIFEST, other), "a"), s.parse(s.sign(MANIFEST, keys[0]), "b")
    forged = s.Signature(theirs.public_key, mine.signature)
    with pytest.raises(UserError, match="does not belong to this manifest"):
        s.check(forged, MANIFEST, keys[1], "here")


def test_the_private_key_is_its_owners_alone_and_never_replaced(
    keys: tuple[Path, Path], tmp_path: Path
) -> None:
    private, public = keys
    assert private.stat().st_mode & 0o777 == 0o600
    before = private.read_bytes()
    with pytest.raises(UserError, match="a key is never replaced"):
        s.make_keys(private)
    public.rename(tmp_path / "kept")
    private.rename(tmp_path / "kept.pem")
    public.write_text("x")
    with pytest.raises(UserError, match="a key is never replaced"):
        s.make_keys(private)
    assert (tmp_path / "kept.pem").read_bytes() == before
    assert not private.exists()


def test_keys_that_are_none_are_one_message(keys: tuple[Path, Path], tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as ser
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private, public = keys
    signed = s.parse(s.sign(MANIFEST, private), "here")
    (tmp_path / "empty.pem").write_text("")
    (tmp_path / "large.pem").write_bytes(bytes(1 << 17))
    curve = ec.generate_private_key(ec.SECP256R1())
    plain = ser.NoEncryption()
    (tmp_path / "ec.pem").write_bytes(
        curve.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, plain)
    )
    (tmp_path / "ec.pub.pem").write_bytes(
        curve.public_key().public_bytes(ser.Encoding.PEM, ser.PublicFormat.SubjectPublicKeyInfo)
    )
    (tmp_path / "locked.pem").write_bytes(
        Ed25519PrivateKey.generate().private_bytes(
            ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.BestAvailableEncryption(b"word")
        )
    )
    for file, message in (
        (tmp_path / "nothing.pem", "no such key"), (tmp_path, "not a key file"),
        (tmp_path / "large.pem", "not a key file"), (tmp_path / "empty.pem", "no private key"),
        (public, "no private key"), (tmp_path / "ec.pem", "expected Ed25519"),
        (tmp_path / "locked.pem", "the key is encrypted"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            s.sign(MANIFEST, file)
    for file, message in (
        (tmp_path / "nothing.pem", "no such key"), (tmp_path / "empty.pem", "no public key"),
        (private, "a private key; --key takes the public one"),
        (tmp_path / "ec.pub.pem", "expected Ed25519"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            s.check(signed, MANIFEST, file, "here")


def test_without_cryptography_it_says_what_to_install(
    keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = s.parse(s.sign(MANIFEST, keys[0]), "here")
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for call in (
        lambda: s.make_keys(tmp_path / "k.pem"),
        lambda: s.sign(MANIFEST, keys[0]),
        lambda: s.check(signed, MANIFEST, keys[1], "here"),
    ):
        with pytest.raises(EnvironmentLacks, match=r"pip install -e '/.*\[release\]'"):
            call()


def test_a_key_of_openssl_serves(tmp_path: Path) -> None:
    tool = shutil.which("openssl")
    if tool is None:
        pytest.skip("no openssl here")
    private, public = tmp_path / "k.pem", tmp_path / "k.pub.pem"
    make = [tool, "genpkey", "-algorithm", "ed25519", "-out", str(private)]
    if subprocess.run(make, capture_output=True, check=False).returncode:
        pytest.skip("this openssl has no Ed25519")
    subprocess.run([tool, "pkey", "-in", private, "-pubout", "-out", public], check=True)
    found = s.parse(s.sign(MANIFEST, private), "here")
    assert s.check(found, MANIFEST, public, "here") == found.signer


def test_a_pair_is_never_mixed_and_a_private_key_never_has_a_public_ones_name(
    tmp_path: Path,
) -> None:
    for name in ("x.pub.pem", "k.pub", "a.pub.key"):
        with pytest.raises(UserError, match="named as a public key"):
            s.make_keys(tmp_path / name)
    for path in (Path(), tmp_path):
        with pytest.raises(UserError, match="a folder; give the name of a file"):
            s.make_keys(path)
    (tmp_path / "release.pub.pem").write_text("another's")
    with pytest.raises(UserError, match="a key is never replaced"):
        s.make_keys(tmp_path / "release.pem")
    assert [p.name for p in tmp_path.iterdir()] == ["release.pub.pem"]


def test_of_processes_that_make_the_same_key_one_gets_a_pair(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from vcompress.bench.bundle.signature import make_keys\n"
        "from vcompress.bench.errors import UserError\n"
        "try: make_keys(Path(sys.argv[1]))\n"
        "except UserError: sys.exit(2)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "k.pem")]
    running = [subprocess.Popen(command) for _ in range(4)]
    assert sorted(process.wait() for process in running) == [0, 2, 2, 2]
    text = s.sign(MANIFEST, tmp_path / "k.pem")
    s.check(s.parse(text, "here"), MANIFEST, tmp_path / "k.pub.pem", "here")
