"""Results go where they were asked to go, and never over what a command reads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vcompress.bench.bundle import InputSpec, Preprocess, create
from vcompress.bench.bundle.output import check_output, check_outputs, write_text, written
from vcompress.bench.errors import UserError


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "b"
    with create(
        path, input=InputSpec("x", (3, 8, 8)), preprocess=Preprocess((8, 8)), labels=("a", "b"),
        data=None, history=(),
    ) as staging:  # fmt: skip
        (staging / "model.onnx").write_text("model")
    return path


def test_a_file_is_replaced_and_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    (tmp_path / "new.json").symlink_to("fresh.json")
    write_text(tmp_path / "link.json", "über\n")
    write_text(tmp_path / "new.json", "b")
    assert (tmp_path / "link.json").is_symlink() and (tmp_path / "new.json").is_symlink()
    assert (tmp_path / "real.json").read_bytes() == "über\n".encode()
    assert (tmp_path / "fresh.json").read_text() == "b"
    assert len(list(tmp_path.iterdir())) == 4


def test_a_failure_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(ValueError, match="stop"), written(tmp_path / "a") as stream:
        stream.write(b"half")
        raise ValueError("stop")
    assert (tmp_path / "a").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_pipe_gets_the_bytes_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "text")
    reader.join(10)
    assert read == ["text"]
    assert pipe.is_fifo()


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
@pytest.mark.parametrize("to", ["pipe", "file"])
def test_the_standard_output_stays_and_keeps_what_was_printed(
    tmp_path: Path, name: str, to: str
) -> None:
    (tmp_path / "link").symlink_to("/dev/stdout")
    script = (
        "import sys; from pathlib import Path\n"
        "from vcompress.bench.bundle.output import check_outputs, write_text\n"
        "print('before'); path = Path(sys.argv[1]); check_outputs([path, path])\n"
        "write_text(path, 'text\\n'); print('after')"
    )
    target = tmp_path / "out.txt"
    with target.open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-c", script, name], cwd=tmp_path, check=True,
            stdout=file if to == "file" else subprocess.PIPE,
        )  # fmt: skip
    said = target.read_bytes() if to == "file" else done.stdout
    assert said == b"before\ntext\nafter\n"
    assert Path("/dev/stdout").is_symlink()


def test_an_input_is_never_an_output(tmp_path: Path, bundle: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_text("model")
    (tmp_path / "hard").hardlink_to(model)
    (tmp_path / "soft").symlink_to(model)
    for path in (model, tmp_path / "x" / ".." / "m.onnx", tmp_path / "hard", tmp_path / "soft"):
        with pytest.raises(UserError, match=r"the command reads .* and would destroy it"):
            check_output(path, [model])
    with pytest.raises(UserError, match=r"the command reads .*/b, and would destroy it"):
        check_output(bundle / "new.json", [bundle])
    with pytest.raises(UserError, match="named for two results"):
        check_outputs([tmp_path / "r", None, tmp_path / "r"])
    assert model.read_text() == "model"


def test_nothing_is_written_into_a_bundle_or_in_place_of_a_folder(
    tmp_path: Path, bundle: Path
) -> None:
    (tmp_path / "way").symlink_to(bundle)
    (tmp_path / "into").symlink_to(bundle / "model.onnx")
    (bundle / "sub").mkdir()
    for path in (bundle / "model.onnx", tmp_path / "way/x", bundle / "sub/x", tmp_path / "into"):
        with pytest.raises(UserError, match=r"lies in the bundle .*/b, whose manifest"):
            write_text(path, "text")
    with pytest.raises(UserError, match="a folder; give the name of a file"):
        write_text(tmp_path, "text")
    with pytest.raises(UserError, match="there is no folder"):
        check_outputs([tmp_path / "no" / "x.json"])
    for name in ("a" * 300, "a\0b"):
        with pytest.raises(UserError, match="cannot be written"):
            write_text(tmp_path / name, "text")
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(UserError, match="cannot be written"):
        write_text(tmp_path / "round", "text")
    assert sorted(p.name for p in bundle.iterdir()) == [
        "manifest.json", "manifest.sha256", "model.onnx", "sub",
    ]  # fmt: skip
