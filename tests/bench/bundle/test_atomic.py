"""Only what a writer made itself is removed, and only one process writes at a place."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

import pytest

from vcompress.bench.bundle import atomic
from vcompress.bench.bundle.atomic import (
    MARK,
    claimed,
    staged_file,
    staged_folder,
    temporary_folder,
)
from vcompress.bench.errors import UserError


def put(path: Path, goes: Collection[str] = ("a.txt",), **files: str) -> None:
    with staged_folder(path, lambda _: goes) as staging:
        for name, text in files.items():
            (staging / f"{name}.txt").write_text(text)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def everything(folder: Path) -> dict[str, str]:
    """Each file, folder and link below `folder`, with what it holds."""
    found = {}
    for path in folder.rglob("*"):
        text = (
            str(path.readlink())
            if path.is_symlink()
            else path.read_text()
            if path.is_file()
            else "/"
        )
        found[path.relative_to(folder).as_posix()] = text
    return found


def test_what_nobody_listed_is_carried_over(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    put(folder, a="old")
    (folder / "paper" / "figures").mkdir(parents=True)
    (folder / "paper" / "draft.tex").write_text("x")
    (folder / "paper").chmod(0o750)
    (folder / "empty").mkdir()
    (folder / "link").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    (folder / "notes.txt").write_text("mine")
    inode = (folder / "notes.txt").stat().st_ino
    folder.chmod(0o700)
    put(folder, a="new")
    (folder / "pipe").unlink()  # a reader would wait for ever
    assert everything(folder) == {
        "a.txt": "new", "paper": "/", "paper/figures": "/", "paper/draft.tex": "x", "empty": "/",
        "link": "nowhere", "notes.txt": "mine",
    }  # fmt: skip
    assert (folder / "notes.txt").stat().st_ino == inode
    assert (folder / "paper").stat().st_mode & 0o777 == 0o750
    assert folder.stat().st_mode & 0o777 == 0o700
    assert left_in(tmp_path) == ["b"]


def test_a_folder_of_listed_files_goes_with_them_and_keeps_what_is_not_listed(
    tmp_path: Path,
) -> None:
    (tmp_path / "b" / "engines").mkdir(parents=True)
    (tmp_path / "b" / "old").mkdir()
    for name in ("engines/one", "engines/mine", "old/one"):
        (tmp_path / "b" / name).write_text(name)
    put(tmp_path / "b", ("engines/one", "old/one"), a="new")
    assert everything(tmp_path / "b") == {
        "a.txt": "new", "engines": "/", "engines/mine": "engines/mine",
    }  # fmt: skip


@pytest.mark.parametrize("taken", ["a.txt", "a.txt/inside"])
def test_a_file_that_is_not_listed_is_never_replaced(tmp_path: Path, taken: str) -> None:
    file = tmp_path / "b" / taken
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(UserError, match=r"holds a.txt.*Move it elsewhere"):
        put(tmp_path / "b", (), a="new")
    assert file.read_text() == "mine"
    assert left_in(tmp_path) == ["b"]


def test_what_is_written_through_a_name_while_the_folder_is_made_is_kept(tmp_path: Path) -> None:
    put(tmp_path / "b", a="old")
    with staged_folder(tmp_path / "b", lambda _: {"a.txt"}) as staging:
        (staging / "a.txt").write_text("new")
        (tmp_path / "b" / "notes.txt").write_text("late")
    assert everything(tmp_path / "b") == {"a.txt": "new", "notes.txt": "late"}


def test_the_working_folder_itself_can_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "b", a="old")
    monkeypatch.chdir(tmp_path / "b")
    put(Path(), a="new")
    assert everything(tmp_path / "b") == {"a.txt": "new"}
    assert left_in(tmp_path) == ["b"]


def test_folders_without_our_mark_are_never_touched(tmp_path: Path) -> None:
    for name in (".b.previous", ".b.abc.writing", ".b.work"):
        (tmp_path / name / "old").mkdir(parents=True)
        (tmp_path / name / "mine").write_text("mine")
        os.utime(tmp_path / name, (0, 0))
    before = everything(tmp_path)
    atomic.recover(tmp_path / "b")
    assert everything(tmp_path) == before
    put(tmp_path / "b", a="new")
    with pytest.raises(UserError, match=r"not from vcompress. Move it elsewhere"):
        atomic.take_folder(tmp_path / ".b.work")
    atomic.drop_folder(tmp_path / ".b.work")
    assert everything(tmp_path) == {**before, "b": "/", "b/a.txt": "new"}


def other(script: str, path: Path) -> subprocess.Popen[bytes]:
    head = (
        "import sys, time\nfrom pathlib import Path\n"
        "from vcompress.bench.bundle.atomic import claimed, staged_file, staged_folder\n"
        f"path = Path({str(path)!r})\n"
    )
    return subprocess.Popen([sys.executable, "-c", head + script], stdout=subprocess.PIPE)


def test_one_process_writes_at_a_place_and_its_end_frees_it(tmp_path: Path) -> None:
    script = """
with claimed(path), staged_folder(path, lambda _: ()) as staging:
    (staging / "a.txt").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""
    with other(script, tmp_path / "b") as process:
        assert process.stdout is not None and process.stdout.readline() == b"writing\n"
        with pytest.raises(UserError, match="another process is writing there"):
            put(tmp_path / "b", a="second")
        put(tmp_path / "c", a="elsewhere")
        # What the living one has begun is not swept.
        assert len(list(tmp_path.glob(".b.*.writing/new/a.txt"))) == 1
        process.kill()
    put(tmp_path / "b", a="second")
    assert everything(tmp_path) == {"b": "/", "b/a.txt": "second", "c": "/", "c/a.txt": "elsewhere"}


def test_a_claim_may_be_taken_again_by_its_own_process(tmp_path: Path) -> None:
    with claimed(tmp_path / "b"), claimed(tmp_path / "b"):
        put(tmp_path / "b", a="new")
        assert (tmp_path / ".b.lock").exists()
    assert left_in(tmp_path) == ["b"]


def test_a_file_that_has_the_name_of_the_lock_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / ".b.lock").write_text("mine")
    put(tmp_path / "b", a="new")
    assert (tmp_path / ".b.lock").read_text() == "mine"
    (tmp_path / ".c.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="Move it elsewhere"):
        put(tmp_path / "c", a="new")
    assert not (tmp_path / "elsewhere").exists()


def test_a_bundle_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def appears() -> None:
        with staged_folder(tmp_path / "b", lambda _: ()) as staging:
            (staging / "a.txt").write_text("ours")
            (tmp_path / "b").mkdir()
            (tmp_path / "b" / "manifest.json").write_text("theirs")

    with pytest.raises(UserError, match="something else was written there meanwhile"):
        appears()
    assert everything(tmp_path) == {"b": "/", "b/manifest.json": "theirs"}


def test_what_a_killed_writer_left_is_swept_by_the_next_one(tmp_path: Path) -> None:
    script = """
with staged_file(path) as stream:
    stream.write(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""
    with other(script, tmp_path / "f") as process:
        assert process.stdout is not None and process.stdout.readline() == b"writing\n"
        process.kill()
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".writing")
    with staged_file(tmp_path / "f") as stream:
        stream.write(b"whole")
    assert everything(tmp_path) == {"f": "whole"}


def test_a_new_file_takes_the_umask_and_a_replaced_one_keeps_its_permissions(
    tmp_path: Path,
) -> None:
    before = os.umask(0o027)
    try:
        for _ in range(2):
            with staged_file(tmp_path / "f") as stream:
                stream.write(b"x")
            assert (tmp_path / "f").stat().st_mode & 0o777 in (0o640, 0o604)
            (tmp_path / "f").chmod(0o604)
    finally:
        os.umask(before)


HOLDER = """
import sys, time
from vcompress.bench.bundle.atomic import temporary_folder
with temporary_folder() as folder:
    (folder / "large").write_bytes(bytes(1000))
    print(folder, flush=True)
    time.sleep(60)
"""


def test_a_temporary_folder_of_a_killed_process_is_swept_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    strangers = tmp_path / ".vcompress.theirs.writing"
    strangers.mkdir()
    (strangers / "notes.txt").write_text("kept")
    begun = tmp_path / ".vcompress.begun.writing"  # its maker has not locked it yet
    begun.mkdir()
    (begun / MARK).touch()
    running = [
        subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        killed, alive = (Path((p.stdout.readline() if p.stdout else "").strip()) for p in running)
        running[0].kill()
        running[0].wait()
        assert (killed / "large").is_file()
        with temporary_folder() as own, temporary_folder() as other:
            assert own != other and own.is_dir() and other.is_dir()
            assert not killed.parent.exists()
            assert (alive / "large").is_file()
        assert not own.parent.exists() and not other.parent.exists()
        assert (strangers / "notes.txt").is_file() and begun.is_dir()
    finally:
        for process in running:
            process.kill()
            process.communicate()


def test_a_second_temporary_folder_leaves_the_first_one_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    sweeper = HOLDER.replace("time.sleep(60)", "")
    with temporary_folder() as first:
        with temporary_folder():
            pass
        subprocess.run([sys.executable, "-c", sweeper], check=True, capture_output=True)
        assert first.is_dir()


def test_messages_name_files_without_the_folder_that_will_be_gone(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught, temporary_folder() as folder:
        raise UserError(f"{folder / 'model.onnx'}: damaged; {folder} is full")
    assert str(caught.value) == "model.onnx: damaged; a temporary folder is full"
    out = tmp_path / "net"
    with pytest.raises(UserError) as caught, staged_folder(out, lambda path: ()) as folder:
        raise UserError(f"{folder / 'model.onnx'}: damaged")
    assert str(caught.value) == f"{out / 'model.onnx'}: damaged"
