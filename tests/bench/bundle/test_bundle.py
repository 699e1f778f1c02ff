"""The bundle: whole or not at all, and nothing in it is believed unchecked."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from vcompress.bench.bundle import Bundle, InputSpec, Preprocess, create, find_bundle, is_bundle
from vcompress.bench.bundle import bundle as bundles
from vcompress.bench.bundle import manifest as manifests
from vcompress.bench.bundle.history import Entry
from vcompress.bench.bundle.manifest import seal_of
from vcompress.bench.errors import UserError

RECORD = {
    "source": "digits", "root": None, "seed": 0, "fingerprint": "f",
    "splits": {"train": 3, "val": 1, "test": 1},
}  # fmt: skip


def write(path: Path, text: str = "one", history: tuple[Entry, ...] = ()) -> Bundle:
    with create(
        path,
        input=InputSpec("input", (3, 8, 8)),
        preprocess=Preprocess((8, 8)),
        labels=("cat", "dog"),
        data=RECORD,
        history=history,
    ) as folder:
        (folder / "model.onnx").write_text(text)
        (folder / "engines").mkdir()
        (folder / "engines" / "a.plan").write_text("plan")
    return Bundle.open(path)


def edit(path: Path, **changes: Any) -> None:
    """Change the manifest and its hash with it, as a hostile author would."""
    manifest = json.loads((path / "manifest.json").read_text())
    rewrite(path, json.dumps({**manifest, **changes}).encode())


def rewrite(path: Path, content: bytes) -> None:
    (path / "manifest.json").write_bytes(content)
    (path / "manifest.sha256").write_bytes(seal_of(content))


def left_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    history = (Entry("finetune", "resnet18", config={"lr": 0.5}),)
    made = write(tmp_path / "b", history=history)
    assert made.input == InputSpec("input", (3, 8, 8))
    assert made.preprocess == Preprocess((8, 8))
    assert made.labels == ("cat", "dog")
    assert made.data == RECORD
    assert made.history == history
    assert set(made.files) == {"model.onnx", "engines/a.plan"}
    assert made.size_bytes == 7
    made.verify()
    assert left_in(tmp_path) == ["b"]
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o755


def test_a_model_file_finds_the_bundle_that_it_lies_in(tmp_path: Path) -> None:
    write(tmp_path / "b")
    found = find_bundle(tmp_path / "b" / "model.onnx")
    assert found is not None and found.labels == ("cat", "dog")
    assert find_bundle(tmp_path / "elsewhere.onnx") is None


def test_an_exception_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), create(
        tmp_path / "b", input=InputSpec("input", (3, 8, 8)), preprocess=Preprocess((8, 8)),
        labels=(), data=None, history=(),
    ) as folder:  # fmt: skip
        (folder / "half").write_text("x")
        raise KeyboardInterrupt
    assert left_in(tmp_path) == []


def test_an_exception_while_writing_keeps_the_old_bundle(tmp_path: Path) -> None:
    write(tmp_path / "b", "old")
    with pytest.raises(OSError, match="No space"), create(
        tmp_path / "b", input=InputSpec("input", (3, 8, 8)), preprocess=Preprocess((8, 8)),
        labels=(), data=None, history=(),
    ):  # fmt: skip
        raise OSError(28, "No space left on device")
    assert left_in(tmp_path) == ["b"]
    assert Bundle.open(tmp_path / "b").file("model.onnx").read_text() == "old"


def test_a_history_that_is_no_json_leaves_the_old_bundle(tmp_path: Path) -> None:
    write(tmp_path / "b", "old")
    with pytest.raises(ValueError, match="JSON"):
        write(tmp_path / "b", "new", (Entry("s", "m", extra={"loss": float("nan")}),))
    assert left_in(tmp_path) == ["b"]
    assert Bundle.open(tmp_path / "b").file("model.onnx").read_text() == "old"


def test_a_second_bundle_replaces_the_first(tmp_path: Path) -> None:
    write(tmp_path / "b", "old")
    assert write(tmp_path / "b", "newer").file("model.onnx").read_text() == "newer"
    assert left_in(tmp_path) == ["b"]


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A process of its own that knows `write` of this file and the bundle's `folder`."""
    head = f"""
import os, sys
from pathlib import Path
from vcompress.bench.bundle import InputSpec, Preprocess, create
folder = Path({str(folder)!r})
def write(text):
    with create(folder, input=InputSpec("input", (3, 8, 8)), preprocess=Preprocess((8, 8)),
                labels=(), data=None, history=()) as staging:
        (staging / "model.onnx").write_text(text)
"""
    return subprocess.run(
        [sys.executable, "-c", head + script], capture_output=True, text=True, check=False
    )


KILLED_BETWEEN_THE_RENAMES = """
rename = Path.rename
def killed(self, target):
    if self.name == "new":
        os._exit(9)
    return rename(self, target)
Path.rename = killed
write("new")
"""


def test_a_kill_between_the_two_renames_is_mended(tmp_path: Path) -> None:
    write(tmp_path / "b", "old")
    (tmp_path / "b" / "notes.txt").write_text("mine")
    assert run(KILLED_BETWEEN_THE_RENAMES, tmp_path / "b").returncode == 9
    assert not (tmp_path / "b").exists()
    assert is_bundle(tmp_path / "b")
    assert Bundle.open(tmp_path / "b").file("model.onnx").read_text() == "old"
    assert (tmp_path / "b" / "notes.txt").read_text() == "mine"
    write(tmp_path / "b", "new")
    assert left_in(tmp_path) == ["b"]


def test_a_reader_between_the_two_renames_waits_for_the_writer(tmp_path: Path) -> None:
    write(tmp_path / "b", "old")
    script = """
import time
rename = Path.rename
def slow(self, target):
    if self.name == "new":
        print("between", flush=True)
        time.sleep(0.2)
    return rename(self, target)
Path.rename = slow
write("new")
"""
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(run, script, tmp_path / "b")
        while (tmp_path / "b").exists() and not done.done():
            time.sleep(0.001)
        assert Bundle.open(tmp_path / "b").file("model.onnx").read_text() == "new"
        assert done.result().returncode == 0
    assert left_in(tmp_path) == ["b"]


def test_a_process_that_is_killed_while_writing_leaves_the_old_bundle(tmp_path: Path) -> None:
    write(tmp_path / "b", "old")
    script = f"""
import sys, time
from pathlib import Path
from vcompress.bench.bundle import *
with create(Path({str(tmp_path / "b")!r}), input=InputSpec("input", (3, 8, 8)),
            preprocess=Preprocess((8, 8)), labels=(), data=None, history=()) as folder:
    (folder / "model.onnx").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    opened = Bundle.open(tmp_path / "b")
    opened.verify()
    assert opened.file("model.onnx").read_text() == "old"
    assert all(name in ("b", ".b.lock") or name.endswith(".writing") for name in left_in(tmp_path))
    assert write(tmp_path / "b", "new").file("model.onnx").read_text() == "new"
    assert left_in(tmp_path) == ["b"]


def test_a_changed_byte_is_found_and_named(tmp_path: Path) -> None:
    made = write(tmp_path / "b", "abc")
    (tmp_path / "b" / "model.onnx").write_text("abd")
    with pytest.raises(UserError, match=r"model\.onnx: changed after it was written \(3 bytes"):
        made.file("model.onnx")
    with pytest.raises(UserError, match="SHA-256 differs"):
        made.verify()


def test_a_lost_and_a_linked_and_an_unknown_file_are_named(tmp_path: Path) -> None:
    made = write(tmp_path / "b", "abc")
    file = tmp_path / "b" / "model.onnx"
    file.rename(tmp_path / "outside.onnx")
    with pytest.raises(UserError, match=r"the manifest names this file, but it is not there"):
        made.file("model.onnx")
    file.symlink_to(tmp_path / "outside.onnx")
    with pytest.raises(UserError, match=r"it is not there"):
        made.file("model.onnx")
    with pytest.raises(UserError, match=r"has no weights; it has engines/a\.plan, model\.onnx"):
        made.file("weights")


ENTRY = {"sha256": "0" * 64, "bytes": 1}


ODD_NAMES = (
    "./x", "a//b", "a/", "a\nb", "a\u202eb", "c:x", "x.", " x", "a /b", "x" * 256, "manifest.json",
    "MANIFEST.SHA256", "manifest.sig/x",
)  # fmt: skip


OTHER_PROGRAMS_NAMES = (
    ".git/config", "HEAD", "config", "refs/heads/x", ".envrc", ".DS_Store", "conftest.py", "x.py",
    "pyproject.toml", "package.json", "index.html", "desktop.ini", "x.lnk", "x.desktop", "Makefile",
    "con", "nul", "NUL.onnx", "aux.onnx", "COM1.onnx", "lpt9.data", "engines/con.json", "conin$",
    "a<b.onnx", "a>b.onnx", "a|b.onnx", "a?b.onnx", "a*b.onnx", 'a"b.onnx', "-rf.onnx", ".onnx",
    "$(id).onnx", "a;b.onnx", "%PATH%.onnx", "~root.onnx", "MODEL~1.ONN", "[x].onnx", "a b.onnx",
    "model.onnx\u3164", "mod\u00e9l.onnx", "\ufb01.onnx", "a" * 255, "a" * 101 + ".onnx", "a.ONNX",
    "engines/a/b.engine", "notes.txt", "engines/run.sh", "con/a.txt", "engines/a.html",
    "*/_ORT_MEM_ADDR_/*", "a.onnx\n",
)  # fmt: skip


@pytest.mark.parametrize("name", OTHER_PROGRAMS_NAMES)
def test_a_bundle_has_files_of_the_names_on_the_list_alone(tmp_path: Path, name: str) -> None:
    write(tmp_path / "b")
    files = json.loads((tmp_path / "b" / "manifest.json").read_text())["files"]
    edit(tmp_path / "b", files={**files, name: ENTRY})
    with pytest.raises(UserError, match=r"refused"):
        Bundle.open(tmp_path / "b")


def test_a_bundle_is_not_written_with_a_file_of_another_name(tmp_path: Path) -> None:
    def written() -> None:
        with create(
            tmp_path / "b", input=InputSpec("x", (3, 8, 8)), preprocess=Preprocess((8, 8)),
            labels=(), data=None, history=(),
        ) as folder:  # fmt: skip
            (folder / "setup.py").write_text("")

    with pytest.raises(UserError, match=r"'setup.py' is no name that a bundle's file has"):
        written()
    assert left_in(tmp_path) == []


NAMES = (
    "model.onnx", "model.onnx.data", "weights.safetensors", "golden.npz", "architecture.json",
    "report.html", "section.html", "engines/tensorrt-rtx-int8-fp16-sm86-sm120.engine",
    "engines/tensorrt-fp16-sm86.json", "engines/model.int8-fp16.onnx", "engines/a.plan",
    "notes/card.txt", "model.xml", "model.bin", "con-net.onnx",
)  # fmt: skip


def test_every_name_that_vcompress_writes_is_on_the_list() -> None:
    manifests.check_files({name: bundles.FileEntry("0" * 64, 1) for name in NAMES}, "x")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_file_name_that_some_system_reads_otherwise_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / "b")
    edit(tmp_path / "b", files={name: ENTRY})
    with pytest.raises(UserError, match="refused"):
        Bundle.open(tmp_path / "b")


@pytest.mark.parametrize("names", [("a", "A"), ("é", "e\u0301"), ("a", "a/b"), ("A/x", "a")])
def test_two_file_names_that_are_one_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    write(tmp_path / "b")
    edit(tmp_path / "b", files=dict.fromkeys(names, ENTRY))
    with pytest.raises(UserError, match="refused"):
        Bundle.open(tmp_path / "b")


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../x", "", "..", ".", "a\\..\\x", "a\0b"]
)
def test_a_file_name_that_leaves_the_bundle_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / "b")
    edit(tmp_path / "b", files={name: ENTRY})
    with pytest.raises(UserError, match="points outside the bundle; refused"):
        Bundle.open(tmp_path / "b")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "format is 'other', expected 'vcompress-bundle'"),
        ({"schema_version": 99}, "schema_version is 99; this version of vcompress reads 1"),
        ({"labls": []}, "unknown key 'labls'. Did you mean 'labels'?"),
        ({"labels": "cat"}, "labels = 'cat', expected a list"),
        ({"labels": [1, 2]}, "labels[0] = 1, expected a text"),
        ({"input": None}, "input = None"),
        ({"input": {"name": "i", "shape": [3, 8]}}, "input.shape = [3, 8], expected 3 values"),
        ({"input": {"name": "i", "shape": [3, 8, 8], "x": 1}}, "unknown key 'input.x'"),
        ({"preprocess": {"size": [0, 8]}}, "size = (0, 8)"),
        ({"preprocess": {"size": [8, 8], "mean": [1.0]}}, "RGB has 3 channels, but mean has 1"),
        ({"preprocess": {"size": [8, 8], "std": [1.0, 0.0, 1.0]}}, "each must be above 0"),
        ({"preprocess": {"size": [8, 8], "resize": 4}}, "resize = 4 is smaller than the crop"),
        ({"preprocess": {"size": [8, 8], "mean": [float("nan")] * 3}}, "NaN is no JSON number"),
        ({"files": []}, "files"),
        ({"files": {"a": {"sha256": "x"}}}, "bytes"),
        ({"files": {"a": {"sha256": "x", "bytes": "1"}}}, "files.a.bytes = '1'"),
        ({"files": {"a": {"sha256": "F" * 64, "bytes": 1}}}, "is not 64 hexadecimal digits"),
        ({"files": {"a": {"sha256": "0" * 64, "bytes": -1}}}, "bytes = -1: no such size"),
        ({"files": {"a": {"sha256": "0" * 64, "bytes": 2**63}}}, "no such size"),
        ({"preprocess": {"size": [8, 8], "mean": [10**400, 0, 0]}}, "int too large"),
        ({"schema_version": True}, "schema_version is True"),
        ({"schema_version": 1.0}, "schema_version is 1.0"),
        ({"input": {"name": "i", "shape": [3, 10**30, 8]}}, "each 1 to 16384"),
        ({"input": {"name": "", "shape": [3, 8, 8]}}, "printable name"),
        ({"history": [{"stage": "s", "model": "m", "loss": float("inf")}]}, "Infinity is no JSON"),
        ({"k" * 1001: 1}, "a key of more than 1,000 characters"),
        ({"history": 5}, "history = 5, expected a list"),
        ({"history": None}, "history = None"),
        ({"history": ["x"]}, "history"),
        ({"data": {"source": 5}}, "data.source = 5, expected a text"),
        ({"data": {"source": "digits"}}, "is missing"),
        ({"data": {**RECORD, "splits": [1]}}, "data.splits"),
        ({"data": {**RECORD, "splits": {"train": "x"}}}, "data.splits.train = 'x'"),
    ],
)
def test_a_manifest_with_a_wrong_value_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write(tmp_path / "b")
    edit(tmp_path / "b", **changes)
    with pytest.raises(UserError) as caught:
        Bundle.open(tmp_path / "b")
    assert message in str(caught.value)
    said = str(caught.value)
    assert "manifest.json" in said or said.startswith(("preprocess", "input"))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", "null", '"x"', "[" * 100_000, "{" * 9, "\x00", '{"a": NaN']
)
def test_a_manifest_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    write(tmp_path / "b")
    rewrite(tmp_path / "b", text.encode())
    with pytest.raises(UserError, match=r"manifest\.json"):
        Bundle.open(tmp_path / "b")
    assert not is_bundle(tmp_path / "b")


def test_any_changed_byte_of_the_manifest_and_of_its_hash_is_found(tmp_path: Path) -> None:
    write(tmp_path / "b", history=(Entry("s", "m"),))
    for name in ("manifest.json", "manifest.sha256"):
        file = tmp_path / "b" / name
        content = file.read_bytes()
        for place in range(0, len(content), 7):
            file.write_bytes(
                content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]
            )
            with pytest.raises(UserError, match=r"manifest\.json: changed after it was written"):
                Bundle.open(tmp_path / "b")
            assert name == "manifest.json" or is_bundle(tmp_path / "b")
        file.write_bytes(content)
    Bundle.open(tmp_path / "b").verify()


def test_a_lost_hash_of_the_manifest_is_found_and_a_bundle_without_a_history_opens(
    tmp_path: Path,
) -> None:
    write(tmp_path / "b", history=(Entry("s", "m"),))
    (tmp_path / "b" / "manifest.sha256").unlink()
    with pytest.raises(
        UserError, match=r"manifest\.sha256, which holds the hash of this file, is m"
    ):
        Bundle.open(tmp_path / "b")
    # As vcompress 0.1.0 wrote it: no word of a hash of the manifest.
    edit(tmp_path / "b", history=[{"stage": "s", "model": "m"}])
    (tmp_path / "b" / "manifest.sha256").unlink()
    assert Bundle.open(tmp_path / "b").history == (Entry("s", "m"),)


def test_sha256sum_checks_the_manifest(tmp_path: Path) -> None:
    write(tmp_path / "b")
    tool = shutil.which("sha256sum")
    if tool is None:
        pytest.skip("no sha256sum here")
    done = subprocess.run(
        [tool, "-c", "manifest.sha256"], cwd=tmp_path / "b", capture_output=True, check=True
    )
    assert done.stdout == b"manifest.json: OK\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": "vcompress-bundle", "format": "x"}', "the key 'format' stands there twice"),
        ('{"a": 1e999}', "a number too large for 64 bits"),
        ('{"a": ' + "[" * 70 + "]" * 70 + "}", "more than 64 tables in one another"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
    ],
)
def test_json_that_two_readers_understand_in_two_ways_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    write(tmp_path / "b")
    rewrite(tmp_path / "b", text.encode())
    with pytest.raises(UserError, match="not valid JSON") as caught:
        Bundle.open(tmp_path / "b")
    assert message in str(caught.value)


def test_what_a_kill_left_of_the_old_bundle_does_not_come_back(tmp_path: Path) -> None:
    write(tmp_path / "b", "old")
    killed = "import shutil\nshutil.rmtree = lambda *_, **__: os._exit(9)\nwrite('new')"
    assert run(killed, tmp_path / "b").returncode == 9
    assert Bundle.open(tmp_path / "b").file("model.onnx").read_text() == "new"
    shutil.rmtree(tmp_path / "b")
    with pytest.raises(UserError, match="no such bundle"):
        Bundle.open(tmp_path / "b")


def test_a_manifest_that_is_not_utf8_or_a_folder_or_huge_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "b")
    file = tmp_path / "b" / "manifest.json"
    rewrite(tmp_path / "b", b'{"format": "\xff"}')
    with pytest.raises(UserError, match="not valid JSON"):
        Bundle.open(tmp_path / "b")
    os.truncate(file, 33 * 2**20)
    with pytest.raises(UserError, match="larger than 33,554,432 bytes; not a manifest"):
        Bundle.open(tmp_path / "b")
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match="not a bundle"):
        Bundle.open(tmp_path / "b")


def test_nothing_and_a_plain_folder_are_no_bundles(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such bundle"):
        Bundle.open(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"not a bundle \(no manifest\.json\)"):
        Bundle.open(tmp_path)
    for path in (tmp_path, tmp_path / "nothing", tmp_path / ("long" * 100), "nul\0"):
        assert not is_bundle(path)


def test_out_on_something_else_than_a_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name, message in (
        ("full", "the directory is not empty and is not a bundle; nothing was written"),
        ("file", "this is a file; give another --out"),
        ("link", "give another --out"),
    ):
        with pytest.raises(UserError, match=message):
            write(tmp_path / name)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    assert write(tmp_path / "empty").labels == ("cat", "dog")
    assert left_in(tmp_path) == ["empty", "file", "full", "link"]


def test_the_hash_is_that_of_the_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"abc")
    assert bundles.sha256(file) == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
