"""An older or another bundle of the same key is told from the one that is wanted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vcompress.bench.bundle.archive import pack, unpack
from vcompress.bench.bundle.identity import Expected
from vcompress.bench.bundle.signature import make_keys
from vcompress.bench.errors import UserError
from vcompress.bench.verify import verify
from vcompress.bench.verify.check import main

pytest.importorskip("cryptography")
STARTED = "2026-01-01T00:00:00"


@pytest.fixture
def signed(whole_bundle: Callable[..., Any], tmp_path: Path) -> tuple[Path, Path, str]:
    """An archive, its public key, and the SHA-256 of its manifest."""
    whole_bundle(tmp_path / "b")
    public, _ = make_keys(tmp_path / "k.pem")
    pack(tmp_path / "b", tmp_path / "b.vcb", tmp_path / "k.pem")
    digest = hashlib.sha256((tmp_path / "b" / "manifest.json").read_bytes()).hexdigest()
    return tmp_path / "b.vcb", public, digest


def test_verify_says_what_was_signed(
    signed: tuple[Path, Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    archive, public, digest = signed
    assert main([str(archive), "--key", str(public), "--no-golden", "--expect", "tiny"]) == 0
    assert f"bundle     tiny, import, {STARTED}, manifest {digest}" in capsys.readouterr().out
    assert main([str(archive), "--no-golden", "--not-before", "2026-01-02"]) == 1
    assert f"made {STARTED}, before 2026-01-02: an older bundle" in capsys.readouterr().err
    assert main([str(archive), "--no-golden", "--not-before", "yesterday"]) == 2


@pytest.mark.parametrize(
    ("name", "date"),
    [
        ("other", None), ("tin", None), ("0" * 64, None), (None, "2026-01-01T00:00:01"),
        (None, "2026-01-01T00:00:00-01:00"), ("tiny", "2027-01-01"),
    ],
)  # fmt: skip
def test_another_or_an_older_bundle_is_refused_and_the_newer_one_stays(
    signed: tuple[Path, Path, str], tmp_path: Path, name: str | None, date: str | None
) -> None:
    archive, public, digest = signed
    expected = Expected(name, date)
    assert not verify(archive, key=public, golden=False, expected=expected).ok
    unpack(archive, tmp_path / "there", public)
    before = (tmp_path / "there" / "manifest.json").stat()
    with pytest.raises(UserError, match=r"Nothing was written"):
        unpack(archive, tmp_path / "there", public, overwrite=True, expected=expected)
    assert (tmp_path / "there" / "manifest.json").stat().st_ino == before.st_ino
    for good in (
        Expected("tiny", "2026-01-01"), Expected(digest), Expected(digest[:12], STARTED),
        Expected(f"sha256:{digest}", "2026-01-01T00:00:00Z"),
    ):  # fmt: skip
        assert verify(archive, key=public, golden=False, expected=good).ok
        unpack(archive, tmp_path / "there", public, overwrite=True, expected=good)
