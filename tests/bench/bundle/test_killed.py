"""SIGKILL at random moments of writing, packing and unpacking: whole or not at all."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vcompress.bench.bundle import Bundle
from vcompress.bench.bundle.archive import is_archive, unpack
from vcompress.bench.bundle.atomic import take_folder
from vcompress.bench.verify.check import verify

# Two bundles take turns at the same place, as an archive and as a folder, without an end.
WORK = """
import sys
from itertools import count
from pathlib import Path
from vcompress.bench.bundle.archive import pack, unpack
from vcompress.bench.bundle import InputSpec, Preprocess, create
from vcompress.bench.bundle.history import Entry
folder = Path(sys.argv[1])

def write(path, seed):
    with create(path, input=InputSpec("x", (3, 8, 8)), preprocess=Preprocess((8, 8)),
                labels=("a", "b"), data=None,
                history=(Entry("s", f"seed {seed}"),)) as staging:
        (staging / "engines").mkdir()
        for name in ("model.onnx", "weights.safetensors", "engines/a.engine"):
            (staging / name).write_bytes(bytes([seed]) * 500_000)

for seed in (0, 1):
    for name in (f"from{seed}", "written", "unpacked"):
        if not (folder / name).exists():
            write(folder / name, seed)
for name in ("written", "unpacked"):
    (folder / name / "paper").mkdir(exist_ok=True)
    (folder / name / "paper" / "draft.tex").write_text("mine")
for turn in count(int(sys.argv[2])):
    write(folder / "written", turn % 2)
    pack(folder / f"from{turn % 2}", folder / "packed.vcb")
    unpack(folder / "packed.vcb", folder / "unpacked", overwrite=True)
    if turn == int(sys.argv[2]):
        print("ready", flush=True)
"""


def kill_at_random_moments(count: int, folder: Path) -> list[str]:
    """What was half-written at each kill, after every target was checked."""
    rng = random.Random(0)
    found = []
    for number in range(count):
        with subprocess.Popen(
            [sys.executable, "-c", WORK, str(folder), str(number % 2)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(rng.uniform(0, 0.3))
            process.kill()
        left = sorted(p.name for p in folder.iterdir() if p.name.startswith("."))
        assert all(name.endswith((".writing", ".lock")) for name in left)
        found.append(" ".join(name.split(".")[1] + "." + name.split(".")[-1] for name in left))
        for name in ("written", "unpacked"):
            assert_whole(folder / name, "paper/draft.tex")
            assert (folder / name / "paper" / "draft.tex").read_text() == "mine"
        assert is_archive(folder / "packed.vcb")
        unpack(folder / "packed.vcb", folder / "checked", overwrite=True)
        assert_whole(folder / "checked")
        for name in left:  # what the next writer would sweep
            subprocess.run(["rm", "-rf", folder / name], check=True)
    return found


def assert_whole(path: Path, *strangers: str) -> None:
    checked = verify(path, golden=False)
    assert checked.protected
    assert checked.problems == tuple(f"{name}: not named by the manifest" for name in strangers)
    (entry,) = Bundle.open(path).history
    byte = int(entry.model.removeprefix("seed "))
    assert (path / "engines" / "a.engine").read_bytes() == bytes([byte]) * 500_000


def test_a_few_kills_never_leave_half_a_bundle(tmp_path: Path) -> None:
    assert len(kill_at_random_moments(5, tmp_path)) == 5


@pytest.mark.slow
def test_fifty_kills_never_leave_half_a_bundle(tmp_path: Path) -> None:
    found = kill_at_random_moments(50, tmp_path)
    # They hit all three while they wrote, or the test shows nothing.
    for target in ("written", "packed", "unpacked"):
        assert sum(f"{target}." in left for left in found) >= 3, found


def test_a_kill_between_the_renames_keeps_the_old_one_for_the_next_reader(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WORK, str(tmp_path), "0"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    take_folder(tmp_path / ".written.abc.writing")
    (tmp_path / "written").rename(tmp_path / ".written.abc.writing" / "old")
    assert_whole(tmp_path / "written", "paper/draft.tex")
    assert (tmp_path / "written" / "paper" / "draft.tex").read_text() == "mine"
