"""`vcompress lock`: what pip then installs, and refuses. The index is a folder of tiny wheels."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from vcompress.bench.errors import UserError
from vcompress.compress.cli import main
from vcompress.compress.delivery.lock import Package, as_requirements, locked


def wheel(folder: Path, name: str, version: str, *needs: str, note: str = "") -> Path:
    """A wheel with one module, which says its version."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    extra = "Provides-Extra: cpu\n" if name == "vision_compress" else ""
    files = {
        f"{name}_module.py": f"version = {version!r}  # {note}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{extra}"
        + "".join(f"Requires-Dist: {need}\n" for need in needs),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
        record = "".join(f"{file},,\n" for file in files) + f"{info}/RECORD,,\n"
        archive.writestr(f"{info}/RECORD", record)
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runtimes 1.0 and 2.0, what they need, and the wheel that needs them."""
    folder = tmp_path / "index"
    folder.mkdir()
    for version in ("1.0", "2.0"):
        wheel(folder, "runtime", version, "below>=3")
    wheel(folder, "below", "3.1")
    wheel(folder, "vision_compress", "9.0", "runtime>=1; extra == 'cpu'")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.chdir(folder)
    return folder


def ours(index: Path) -> Path:
    return index / "vision_compress-9.0-py3-none-any.whl"


def test_every_package_has_its_version_and_the_hash_of_its_archive(index: Path) -> None:
    found = locked(ours(index))
    assert [(p.name, p.version) for p in found] == [
        ("below", "3.1"), ("runtime", "2.0"), ("vision_compress", "9.0"),
    ]  # fmt: skip
    for package in found:
        file = index / f"{package.name}-{package.version}-py3-none-any.whl"
        assert package.sha256 == sha256(file.read_bytes()).hexdigest()
        assert package.file == (file.name if package.name == "vision_compress" else "")


def test_pip_installs_the_list_and_refuses_an_archive_that_was_changed(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lock", ours(index).name, "-o", "device.txt"]) == 0
    assert "3 packages" in capsys.readouterr().out
    install = [sys.executable, "-m", "pip", "install", "-q", "--require-hashes",
               "-r", "device.txt"]  # fmt: skip
    subprocess.run([*install, "--target", str(tmp_path / "device")], check=True)
    assert (tmp_path / "device" / "runtime_module.py").read_text().startswith("version = '2.0'")
    wheel(index, "below", "3.1", note="changed by somebody")
    done = subprocess.run(
        [*install, "--target", str(tmp_path / "other")], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert not (tmp_path / "other").exists()


def test_a_bundle_fixes_the_versions_that_it_ran(index: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from vcompress.bench.bundle import Bundle, InputSpec, Preprocess, create
    from vcompress.bench.bundle.history import Entry

    ran = {"runtime": "1.0", "vision-compress": "0.1.0", "torch": "2.14.1"}
    with create(
        tmp_path / "b", input=InputSpec("x", (3, 8, 8)), preprocess=Preprocess((8, 8)),
        labels=("a", "b"), data=None, history=(replace(Entry("s", "m"), packages=ran),),
    ):  # fmt: skip
        pass
    found = locked(ours(index), bundle=Bundle.open(tmp_path / "b"))
    assert {p.name: p.version for p in found}["runtime"] == "1.0"


def test_what_cannot_be_listed_is_one_message(index: Path) -> None:
    with pytest.raises(UserError, match=r"expected the wheel of vision-compress.*pip wheel"):
        locked(index)
    (index / "below-3.1-py3-none-any.whl").unlink()
    with pytest.raises(UserError, match=r"pip finds no packages for vision_compress-9.0"):
        locked(ours(index))


def test_the_text_is_what_pip_reads() -> None:
    found = as_requirements([Package("a", "1", "0" * 64), Package("v", "2", "f" * 64, "v.whl")])
    assert found.splitlines()[1:] == [
        "a==1 \\", f"    --hash=sha256:{'0' * 64}", "./v.whl \\", f"    --hash=sha256:{'f' * 64}",
    ]  # fmt: skip
