"""One file of a bundle: reproducible, and taken only as it was written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vcompress.bench.bundle import Bundle, archive
from vcompress.bench.bundle.archive import pack, unpack
from vcompress.bench.bundle.signature import make_keys
from vcompress.bench.errors import UserError

Make = Callable[..., Bundle]


@pytest.fixture
def packed(whole_bundle: Make, tmp_path: Path) -> Path:
    whole_bundle(tmp_path / "b")
    pack(tmp_path / "b", tmp_path / "b.vcb")
    return tmp_path / "b.vcb"


def content(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_what_is_packed_is_what_is_unpacked(packed: Path, tmp_path: Path) -> None:
    made = unpack(packed, tmp_path / "again")
    made.verify()
    assert content(tmp_path / "again") == content(tmp_path / "b")
    left = sorted(p.name for p in tmp_path.iterdir())
    assert [n for n in left if n.startswith(".")] == []


def test_the_same_bundle_gives_the_same_bytes(packed: Path, tmp_path: Path) -> None:
    unpack(packed, tmp_path / "again")
    for file in (tmp_path / "again").rglob("*"):
        os.utime(file, (1, 1))
        file.chmod(0o700)
    pack(tmp_path / "again", tmp_path / "again.vcb")
    assert (tmp_path / "again.vcb").read_bytes() == packed.read_bytes()
    assert packed.stat().st_mode & 0o777 == 0o644


def test_tar_reads_it(packed: Path, tmp_path: Path) -> None:
    with tarfile.open(packed) as tar:
        assert all(m.isreg() and m.mode == 0o644 and m.mtime == 0 for m in tar)
        assert tar.getnames() == [
            "manifest.json", "manifest.sha256", "golden.npz", "model.onnx", "notes/card.txt",
            "weights.safetensors",
        ]  # fmt: skip
        stream = tar.extractfile("notes/card.txt")
        assert stream is not None and stream.read() == b"a model, seed 0\n"
    if tool := shutil.which("tar"):
        (tmp_path / "t").mkdir()
        done = subprocess.run(
            [tool, "-xf", packed, "-C", tmp_path / "t"], check=True, capture_output=True
        )
        assert done.stderr == b""
        assert content(tmp_path / "t") == content(tmp_path / "b")


@pytest.mark.parametrize(
    ("name", "size"), [("a", 0), ("model.onnx", 8**11 - 1), ("d" * 155 + "/" + "f" * 99, 1)]
)
def test_the_header_is_that_of_tar(name: str, size: int) -> None:
    item = tarfile.TarInfo.frombuf(archive.header(name, size), "utf-8", "strict")
    assert (item.name, item.size, item.mode, item.mtime, item.uid) == (name, size, 0o644, 0, 0)
    assert item.isreg()


@pytest.mark.parametrize(
    ("name", "size"), [("f" * 101, 1), ("d" * 156 + "/f", 1), ("a", 8**11), ("d/" + "f" * 101, 1)]
)
def test_what_the_header_has_no_place_for_is_refused(name: str, size: int) -> None:
    with pytest.raises(UserError, match=r"too long for an archive|8 GiB"):
        archive.header(name, size)


def test_a_signature_is_kept_and_demanded(whole_bundle: Make, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    public, _ = make_keys(tmp_path / "k.pem")
    other, _ = make_keys(tmp_path / "o.pem")
    whole_bundle(tmp_path / "b")
    pack(tmp_path / "b", tmp_path / "plain.vcb")
    pack(tmp_path / "b", tmp_path / "signed.vcb", tmp_path / "k.pem")
    for file, key, message in (
        ("plain.vcb", public, "not signed"), ("signed.vcb", other, "signed by the key"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            unpack(tmp_path / file, tmp_path / "u", key)
        assert not (tmp_path / "u").exists()
    made = unpack(tmp_path / "signed.vcb", tmp_path / "u", public)
    assert (made.path / "manifest.sig").is_file()
    pack(made.path, tmp_path / "again.vcb")
    assert (tmp_path / "again.vcb").read_bytes() == (tmp_path / "signed.vcb").read_bytes()
    unpack(tmp_path / "signed.vcb", tmp_path / "unasked")


def test_a_signature_of_another_bundle_does_not_hold(whole_bundle: Make, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    public, _ = make_keys(tmp_path / "k.pem")
    for seed, name in enumerate("ab"):
        whole_bundle(tmp_path / name, seed=seed)
        pack(tmp_path / name, tmp_path / f"{name}.vcb", tmp_path / "k.pem")
        unpack(tmp_path / f"{name}.vcb", tmp_path / f"{name}s")
    shutil.copy(tmp_path / "as" / "manifest.sig", tmp_path / "bs" / "manifest.sig")
    pack(tmp_path / "bs", tmp_path / "forged.vcb")
    with pytest.raises(UserError, match="does not belong to this manifest"):
        unpack(tmp_path / "forged.vcb", tmp_path / "u", public)
    assert not (tmp_path / "u").exists()


def test_a_bundle_of_before_the_manifest_had_a_hash_gets_one(packed: Path, tmp_path: Path) -> None:
    old = tmp_path / "b"
    manifest = json.loads((old / "manifest.json").read_text())
    del manifest["history"][0]["sealed_by"]
    (old / "manifest.json").write_text(json.dumps(manifest))
    (old / "manifest.sha256").unlink()
    pack(old, packed)
    made = unpack(packed, tmp_path / "u")
    assert (made.path / "manifest.sha256").is_file()
    (made.path / "manifest.json").write_text(json.dumps(manifest) + " ")
    with pytest.raises(UserError, match="changed after it was written"):
        Bundle.open(made.path)


def test_pack_refuses_a_changed_file_and_one_that_no_one_named(
    packed: Path, tmp_path: Path
) -> None:
    before = packed.read_bytes()
    for name, text, message in (
        ("notes/card.txt", "b model, seed 0\n", "card.txt: changed after it was written"),
        ("notes/card.txt", "short", "card.txt: changed after it was written"),
        ("notes/card.txt", "a model, seed 0\n and more", "card.txt: changed after it was written"),
        ("secret.txt", "x", "holds secret.txt, which its manifest does not name"),
    ):
        (tmp_path / "b" / name).write_text(text)
        with pytest.raises(UserError, match=message):
            pack(tmp_path / "b", packed)
    assert packed.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "b.vcb"]


def test_pack_replaces_an_archive_and_nothing_else(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").write_text("mine")
    for out in (tmp_path / "thesis", tmp_path / "b", tmp_path / "b" / "model.onnx"):
        with pytest.raises(UserError, match="something else than an archive"):
            pack(tmp_path / "b", out)
    with pytest.raises(UserError, match="lies in the bundle itself"):
        pack(tmp_path / "b", tmp_path / "b" / "b.vcb")
    assert (tmp_path / "thesis").read_text() == "mine"
    pack(tmp_path / "b", packed)


def test_unpack_replaces_a_bundle_only_when_asked_and_nothing_else_ever(
    packed: Path, tmp_path: Path, whole_bundle: Make
) -> None:
    whole_bundle(tmp_path / "old", seed=1)
    before = content(tmp_path / "old")
    with pytest.raises(UserError, match="there is a bundle already"):
        unpack(packed, tmp_path / "old")
    assert content(tmp_path / "old") == before
    unpack(packed, tmp_path / "old", overwrite=True)
    assert content(tmp_path / "old") == content(tmp_path / "b")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis").write_text("mine")
    with pytest.raises(UserError, match="not a bundle; nothing was written"):
        unpack(packed, tmp_path / "full", overwrite=True)
    assert (tmp_path / "full" / "thesis").read_text() == "mine"


def test_what_is_no_file_is_no_archive(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").write_text("")
    (tmp_path / "zip").write_bytes(b"PK\x03\x04" + bytes(5000))
    for name, message in (
        ("nothing", "no such archive"), (".", "a folder"), ("pipe", "no plain file"),
        ("empty", "not an archive"), ("zip", "not an archive"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            unpack(tmp_path / name, tmp_path / "u")
        assert not (tmp_path / "u").exists()


def test_the_command_packs_and_unpacks_and_makes_keys(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("cryptography")
    main = pytest.importorskip("vcompress.compress.cli").main
    monkeypatch.chdir(tmp_path)
    assert main(["keygen", "k.pem"]) == 0
    assert main(["pack", "b", "-o", "s.vcb", "--sign", "k.pem"]) == 0
    assert main(["unpack", "s.vcb", "--key", "k.pub.pem"]) == 0
    assert content(tmp_path / "s").keys() - content(tmp_path / "b").keys() == {"manifest.sig"}
    assert main(["unpack", "b.vcb", "-o", "t", "--key", "k.pub.pem"]) == 2
    said = capsys.readouterr()
    assert "public key" in said.out and "hashes agree" in said.out and "not signed" in said.err
    packed.unlink()
    assert main(["pack", "b"]) == 0
    assert packed.is_file()
