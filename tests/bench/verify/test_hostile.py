"""500 bundles and archives that were changed, by accident or on purpose: each is refused with a
message, and none writes outside its target, hangs or gives a traceback.

The default suite takes every eighth; `pytest -m slow tests/bench/verify/test_hostile.py` takes all.
"""

from __future__ import annotations

import importlib.util
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vcompress.bench.bundle import Bundle
from vcompress.bench.bundle.archive import pack, unpack
from vcompress.bench.errors import UserError
from vcompress.bench.verify.check import main, verify

COUNT = 500
SECONDS = 10


def load_mutations() -> Any:
    """tests/bench/verify/mutations.py: tests are no package, so it is loaded by its path."""
    spec = importlib.util.spec_from_file_location(
        "mutations", Path(__file__).with_name("mutations.py")
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mutations = load_mutations()


@pytest.fixture
def whole(whole_bundle: Callable[..., Bundle], tmp_path: Path) -> Path:
    """A folder with the bundle `b`, signed where that is possible, and the archive `b.vcb`."""
    whole_bundle(tmp_path / "plain")
    key = None
    if pytest.importorskip("cryptography"):
        from vcompress.bench.bundle.signature import make_keys

        key = tmp_path / "k.pem"
        make_keys(key)
    (tmp_path / "whole").mkdir()
    pack(tmp_path / "plain", tmp_path / "whole" / "b.vcb", key)
    unpack(tmp_path / "whole" / "b.vcb", tmp_path / "whole" / "b")
    return tmp_path / "whole"


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def hangs(*_: Any) -> None:
        raise AssertionError(f"did not end within {seconds} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def everything(folder: Path) -> dict[str, Any]:
    """What lies there: a path to its bytes, the target of a link, or None."""
    return {
        str(p.relative_to(folder)): p.readlink() if p.is_symlink()
        else p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
    }  # fmt: skip


def attack(number: int, whole: Path, arena: Path, said: Callable[[], str]) -> str:
    """One changed bundle or archive through the real functions; returns what was done to it."""
    rng = random.Random(number)
    arena.mkdir()
    try:
        if number % 5 < 3:
            shutil.copytree(whole / "b", arena / "in" / "b")
            done = rng.choice(mutations.FOLDERS)(arena / "in" / "b", rng)
            calls: list[Callable[[], Any]] = [lambda: _verified(arena / "in" / "b")]
            argv = [str(arena / "in" / "b"), "--no-golden"]
        else:
            (arena / "in").mkdir()
            shutil.copy(whole / "b.vcb", arena / "in" / "b.vcb")
            done = rng.choice(mutations.ARCHIVES)(arena / "in" / "b.vcb", rng)
            calls = [
                lambda: unpack(arena / "in" / "b.vcb", arena / "out"),
                lambda: _verified(arena / "in" / "b.vcb"),
            ]
            argv = [str(arena / "in" / "b.vcb"), "--no-golden"]
        before = everything(arena)
        with time_limit(SECONDS):
            for call in calls:
                try:
                    call()
                except UserError as error:
                    said_here = str(error)
                else:
                    raise AssertionError(f"taken: {done}")
                assert 20 < len(said_here) < 2000, done
            assert main(argv) in (1, 2), done
        message = said()
        assert message.startswith("verify: ") and "Traceback" not in message, done
        assert everything(arena) == before, done
        assert not Path("/tmp/evil-vcompress").exists()
    finally:
        shutil.rmtree(arena, ignore_errors=True)
    return done


def _verified(path: Path) -> None:
    found = verify(path, golden=False)
    if not found.ok:
        raise UserError("\n".join(found.problems) + " " * 20)


def run(numbers: range, whole: Path, tmp_path: Path, capsys: Any) -> list[str]:
    done = []
    for number in numbers:
        try:
            done.append(attack(number, whole, tmp_path / "arena", lambda: capsys.readouterr().err))
        except BaseException as error:
            raise AssertionError(f"attack {number}: {error!r}") from error
    return done


def test_sixty_three_changed_bundles_and_archives_are_refused(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(whole / "b", golden=False).ok and verify(whole / "b.vcb", golden=False).ok
    done = run(range(0, COUNT, 8), whole, tmp_path, capsys)
    assert len(done) == 63


@pytest.mark.slow
def test_five_hundred_changed_bundles_and_archives_are_refused(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(range(COUNT), whole, tmp_path, capsys)
    assert len(done) == COUNT
    assert len({what.split()[0] for what in done}) > 30


def test_the_real_commands_end_with_one_message(whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("tyro")
    mutations.flip_a_bit(whole / "b", random.Random(1))
    mutations.archive_with_a_hostile_manifest(whole / "b.vcb", random.Random(3))
    for argv in (["verify", "b"], ["pack", "b", "-o", "c.vcb"], ["unpack", "b.vcb", "-o", "d"]):
        done = subprocess.run(
            [sys.executable, "-m", "vcompress.compress", *argv], cwd=whole, capture_output=True,
            text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode in (1, 2), argv
        assert done.stderr.startswith("vcompress: ") and "Traceback" not in done.stderr
    assert sorted(p.name for p in whole.iterdir()) == ["b", "b.vcb"]
