"""`python -m vcompress...` runs nothing that lies in the working folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

NAMES = (
    "__future__", "argparse", "collections", "contextlib", "dataclasses", "hashlib", "html", "json",
    "mmap", "numpy", "onnxruntime", "pathlib", "re", "resource", "rich", "scipy", "tempfile",
    "torch", "typing", "tyro", "unicodedata", "zipfile",
)  # fmt: skip


@pytest.mark.parametrize(
    ("module", "status"),
    [("vcompress.bench.verify", 2), ("vcompress.bench.cli", 2), ("vcompress.compress", 2)],
)
def test_no_module_of_the_working_folder_is_imported(
    tmp_path: Path, module: str, status: int
) -> None:
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a module of the folder ran')\n")
    command = [sys.executable, "-m", module, "verify" if module.endswith("compress") else "none"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert "ran" not in done.stderr.split()


def test_what_python_itself_took_from_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "early.py").write_text("")
    script = (
        "import sys, early\n"
        "sys.orig_argv[1:] = ['-m', 'vcompress.bench.verify', 'b']\n"
        f"sys.path[0] = {str(tmp_path)!r}\n"
        "import vcompress.bench\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "early.py: was imported in the place of Python's own early" in done.stderr


def test_the_users_own_program_keeps_its_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import vcompress.bench, beside\n")
    (tmp_path / "beside.py").write_text("print('found')\n")
    done = subprocess.run(
        [sys.executable, "-m", "mine"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("found\n", "")
