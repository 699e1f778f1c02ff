"""The CMake package and the example application, built with the machine's compiler and OpenVINO."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vcompress.bench import load
from vcompress.export import edge


@dataclass(frozen=True)
class Project:
    """A source folder and its build folder."""

    source: Path
    build: Path

    def configure(self, *options: str) -> subprocess.CompletedProcess[str]:
        given = [f"-Dvcompress_DIR={edge.cmake_dir()}", f"-DVCOMPRESS_PYTHON={sys.executable}"]
        return run("cmake", "-S", self.source, "-B", self.build, *given, *options)

    def compile(self) -> subprocess.CompletedProcess[str]:
        return run("cmake", "--build", self.build, "--parallel", 2)

    def classify(self, *arguments: Any) -> list[tuple[float, int, str]]:
        """The rows (score, index, label) for one image."""
        done = run(self.build / "classify", "--threads", "1", *arguments)
        assert done.returncode == 0, done.stderr
        rows = (line.split("\t") for line in done.stdout.splitlines() if "\t" in line)
        return [(float(score), int(index), label) for score, index, label in rows]


def run(*command: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=300, check=False
    )


def needs_cmake() -> None:
    if shutil.which("cmake") is None or shutil.which("g++") is None:
        pytest.skip("cmake and g++ are not installed")


def openvino_option() -> str:
    pytest.importorskip("openvino", reason="openvino, which ships headers and libraries, is absent")
    from openvino.utils import get_cmake_path

    return f"-DOpenVINO_DIR={get_cmake_path()}"


def compiled(bundle: Path, build: Path) -> Project:
    """The example application for a bundle. Without optimisation: what takes time here is the
    compiler."""
    needs_cmake()
    project = Project(edge.example_dir(), build)
    done = project.configure(openvino_option(), f"-DBUNDLE={bundle}", "-DCMAKE_BUILD_TYPE=Debug")
    assert done.returncode == 0, done.stderr
    assert "runs its model in OpenVINO" in done.stdout
    done = project.compile()
    assert done.returncode == 0, done.stdout
    return project


@pytest.fixture(scope="module")
def example(
    tmp_path_factory: pytest.TempPathFactory, write_bundle: Callable[..., Path]
) -> tuple[Project, Path]:
    """The example application, built for a bundle whose model stays a file; and that bundle."""
    folder = tmp_path_factory.mktemp("example")
    bundle = write_bundle(folder / "bundle", labels=("a\tb", *(f"class {n}" for n in range(6))))
    project = compiled(bundle, folder / "build")
    return project, bundle


def agree(
    project: Project, bundle: Path, images: list[Image.Image], folder: Path, runtime: str
) -> None:
    """The application's scores against those of `predict`, to 1e-3."""
    with load(bundle, runtime=runtime, threads=1) as model:
        for number, image in enumerate(images):
            file = folder / f"{number}.{'pgm' if image.mode == 'L' else 'ppm'}"
            image.save(file)
            want = model.scores([file])[0]
            found = project.classify("--top", 5, file)
            assert len(found) == min(5, len(want))
            scores = [score for score, _, _ in found]
            assert scores == sorted(scores, reverse=True)
            best = [p.index for p in model.predict(file)]
            assert np.allclose(scores, want[best], atol=1e-3)
            for score, index, label in found:
                assert abs(score - want[index]) < 1e-3
                assert label == model.bundle.labels[index].replace("\t", " ")


def test_the_example_says_what_predict_says(
    example: tuple[Project, Path], photo: Callable[..., Image.Image], tmp_path: Path
) -> None:
    project, bundle = example
    images = [photo(93 + 40 * n, 71 + 9 * n, n) for n in range(4)]
    agree(project, bundle, [*images, photo(mode="L")], tmp_path, "onnxruntime")


@pytest.mark.slow  # the example is compiled again for each
@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_the_example_says_what_predict_says_of_labels_and_of_numbers(
    task: str, write_bundle: Callable[..., Path], photo: Callable[..., Image.Image], tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle", task=task)
    project = compiled(bundle, tmp_path / "build")
    with load(bundle, runtime="onnxruntime", threads=1) as model:
        for seed in range(3):
            file = tmp_path / f"{seed}.ppm"
            photo(93 + 40 * seed, 71, seed).save(file)
            want = model.predict(file, threshold=0.3)
            found = project.classify("--threshold", "0.3", file)
            assert [index for _, index, _ in found] == [p.index for p in want]
            assert np.allclose([s for s, _, _ in found], [p.score for p in want], atol=1e-3)


@pytest.mark.slow  # the example is compiled again for each
@pytest.mark.parametrize("maps", ["logits", "classes"])
def test_the_example_gives_the_mask_that_predict_gives(
    maps: str, write_bundle: Callable[..., Path], photo: Callable[..., Image.Image], tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle", maps=maps, task="segmentation")
    project = compiled(bundle, tmp_path / "build")
    with load(bundle, runtime="openvino", threads=1) as model:
        for seed in range(3):
            file, mask = tmp_path / f"{seed}.ppm", tmp_path / f"{seed}.pgm"
            photo(93 + 40 * seed, 71, seed).save(file)
            want = model.predict(file)
            found = project.classify("--mask", mask, file)
            assert (np.asarray(Image.open(mask)) == want.mask).all()
            assert [index for _, index, _ in found] == [p.index for p in want]
            assert np.allclose([s for s, _, _ in found], [p.score for p in want], atol=1e-6)
    done = run(project.build / "classify", "--mask", mask, file, file)
    assert done.returncode == 2
    assert "--mask is for one image" in done.stderr


def test_the_example_refuses_another_model_and_bad_arguments(
    example: tuple[Project, Path], photo: Callable[..., Image.Image], tmp_path: Path
) -> None:
    project, _ = example
    photo().save(tmp_path / "a.ppm")
    program, beside = project.build / "classify", project.build / "classify.onnx"
    for arguments, says in (
        ([], "usage: classify"),
        (["--top"], "needs a value"),
        (["--top", "x", tmp_path / "a.ppm"], "expected a number"),
        (["--colour", "x", tmp_path / "a.ppm"], "no such option"),
        (["--runtime", "tvm", tmp_path / "a.ppm"], "not built in"),
        ([tmp_path / "none.ppm"], "cannot be opened"),
    ):
        done = run(program, *arguments)
        assert done.returncode == 2
        assert says in done.stderr
    whole = beside.read_bytes()
    try:
        beside.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        done = run(program, tmp_path / "a.ppm")
        assert done.returncode == 2
        assert "not the model that this application was built for" in done.stderr
    finally:
        beside.write_bytes(whole)


APPLICATION = """
cmake_minimum_required(VERSION 3.21)
project(application LANGUAGES {languages})
find_package(vcompress 0.1 REQUIRED)
add_executable(application main.{suffix})
vcompress_add_model(application BUNDLE "${{BUNDLE}}" {options})
install(TARGETS application)
"""
MAIN = """
#include <stdio.h>
#include "vcompress_application.h"
int main(void) { puts(vcompress_application.sha256); return 0; }
"""


def application(folder: Path, options: str = "", language: str = "C") -> Project:
    needs_cmake()
    source = folder / "source with a space"
    source.mkdir()
    suffix = "c" if language == "C" else "cpp"
    (source / f"main.{suffix}").write_text(MAIN)
    (source / "CMakeLists.txt").write_text(
        APPLICATION.format(languages=language, suffix=suffix, options=options)
    )
    return Project(source, folder / "build")


def test_the_cmake_package_has_the_version_of_the_python_one() -> None:
    project = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    (number,) = re.findall(r'^version = "(.*)"$', project, re.MULTILINE)
    told = (edge.cmake_dir() / "vcompressConfigVersion.cmake").read_text()
    assert f'set(PACKAGE_VERSION "{number}")' in told


def test_a_changed_bundle_is_verified_again_before_the_next_build(
    write_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    project = application(tmp_path)
    assert project.configure(f"-DBUNDLE={bundle}").returncode == 0
    assert project.compile().returncode == 0
    first = run(project.build / "application").stdout.strip()
    done = run("cmake", "--install", project.build, "--prefix", tmp_path / "installed")
    assert done.returncode == 0
    installed = tmp_path / "installed" / "bin" / "application.onnx"
    assert installed.read_bytes() == (bundle / "model.onnx").read_bytes()

    # Another bundle at the same place: the header follows without being asked.
    from onnx import load as read
    from onnx import save

    changed = read(str(bundle / "model.onnx"))
    changed.doc_string = "another one"
    shutil.rmtree(bundle)
    write_bundle(bundle)
    data = (bundle / "model.onnx").read_bytes()
    rewrite(write_bundle, bundle, changed, save)
    assert project.compile().returncode == 0
    second = run(project.build / "application").stdout.strip()
    assert len(second) == 64
    assert second != first

    # A byte that nobody meant to change.
    later(bundle / "model.onnx", data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    done = project.compile()
    assert done.returncode != 0
    assert "model.onnx: changed" in " ".join((done.stdout + done.stderr).split())


def rewrite(write_bundle: Callable[..., Path], bundle: Path, model: Any, save: Any) -> None:
    """The same bundle with another model, written whole."""
    from vcompress.bench.bundle import Bundle
    from vcompress.bench.bundle import bundle as bundles

    old = Bundle.open(bundle)
    with bundles.create(
        bundle, input=old.input, preprocess=old.preprocess, labels=old.labels, data=None, history=()
    ) as folder:
        save(model, str(folder / "model.onnx"))
    for file in bundle.iterdir():
        later(file)


def later(file: Path, data: bytes | None = None) -> None:
    """Write and move the time on: some file systems count in seconds."""
    if data is not None:
        file.write_bytes(data)
    now = file.stat().st_mtime_ns + 2_000_000_000
    os.utime(file, ns=(now, now))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("COLOUR red", "unknown argument COLOUR;red"),
        ("NAME 1st-model", "letters, digits and underscores"),
        ("GATE nowhere.toml", "there is no gate file"),
        ("GATE_ARGS --no-accuracy", "GATE_ARGS without GATE"),
    ],
)
def test_a_wrong_call_is_one_message_at_configure_time(
    write_bundle: Callable[..., Path], tmp_path: Path, options: str, says: str
) -> None:
    project = application(tmp_path, options)
    done = project.configure(f"-DBUNDLE={write_bundle(tmp_path / 'bundle')}")
    assert done.returncode != 0
    assert says in " ".join(done.stderr.split())


@pytest.mark.parametrize("name", ["a;b", "a[b", "a]b"])
def test_a_folder_that_no_list_of_cmake_holds_is_named(
    write_bundle: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    project = application(tmp_path)
    escaped = str(write_bundle(tmp_path / name)).replace(";", "\\;")
    done = project.configure(f"-DBUNDLE={escaped}")
    assert done.returncode != 0
    assert "has a semicolon or a square bracket" in " ".join(done.stderr.split())


def test_a_bundle_that_is_none_and_a_python_without_vcompress_are_said(tmp_path: Path) -> None:
    project = application(tmp_path)
    done = project.configure(f"-DBUNDLE={tmp_path}")
    assert done.returncode != 0
    assert "not a bundle" in " ".join(done.stderr.split())
    clean = dict(os.environ, PATH="/usr/bin:/bin", PYTHONPATH="")
    done = subprocess.run(
        ["cmake", "-S", project.source, "-B", tmp_path / "other", "-DVCOMPRESS_PYTHON=/bin/false",
         f"-Dvcompress_DIR={edge.cmake_dir()}", f"-DBUNDLE={tmp_path}"],
        capture_output=True, text=True, env=clean, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    system = run("/usr/bin/python3", "-c", "import vcompress.export.edge").returncode
    if system != 0:
        assert "give -DVCOMPRESS_PYTHON=" in " ".join(done.stderr.split())


@pytest.mark.parametrize(("limit", "passes"), [(10.0, True), (0.0001, False)])
def test_the_build_fails_when_the_gate_fails(
    write_bundle: Callable[..., Path], tmp_path: Path, limit: float, passes: bool
) -> None:
    arguments = "--seconds 0.2 --no-cold-start --threads 1"
    project = application(tmp_path, f"GATE gate.toml GATE_ARGS {arguments}")
    (project.source / "gate.toml").write_text(f"max_size_mb = {limit}\n")
    bundle = write_bundle(tmp_path / "bundle")
    project.build.mkdir()
    for name in ("vcompress", "argparse", "numpy"):  # none of them may be taken for the real one
        (project.build / f"{name}.py").write_text("raise SystemExit('hostile code ran')")
    assert project.configure(f"-DBUNDLE={bundle}").returncode == 0
    done = project.compile()
    assert "hostile" not in done.stdout + done.stderr
    assert (done.returncode == 0) == passes, done.stdout
    assert (project.build / "application").exists() == passes
    assert "max_size_mb" in done.stdout


@pytest.mark.parametrize("language", ["C", "CXX"])
def test_a_model_is_embedded_in_a_c_and_in_a_c_plus_plus_project(
    write_bundle: Callable[..., Path], tmp_path: Path, language: str
) -> None:
    project = application(tmp_path, "EMBED", language)
    bundle = write_bundle(tmp_path / "bundle")
    assert project.configure(f"-DBUNDLE={bundle}").returncode == 0
    done = project.compile()
    assert done.returncode == 0, done.stdout
    assert (bundle / "model.onnx").read_bytes() in (project.build / "application").read_bytes()
    assert not (project.build / "application.onnx").exists()


QUANTIZE = ["quantize", "--model", "runs/net", "--trust", "tiny_nets:batch"]


@pytest.mark.slow
@pytest.mark.parametrize("embed", ["ON", "OFF"])
def test_an_int8_bundle_runs_in_the_example(work: Path, embed: str, tmp_path: Path) -> None:
    from vcompress.compress.cli import main

    assert main([*QUANTIZE, "--out", "runs/int8"]) == 0
    needs_cmake()
    bundle = work / "runs" / "int8"
    assert b"DequantizeLinear" in (bundle / "model.onnx").read_bytes()
    project = Project(edge.example_dir(), tmp_path / "build")
    done = project.configure(openvino_option(), f"-DBUNDLE={bundle}", f"-DEMBED={embed}")
    assert done.returncode == 0, done.stderr
    done = project.compile()
    assert done.returncode == 0, done.stdout
    files = sorted((work / "images").rglob("*.png"))[::13]
    images = [Image.open(file) for file in files]
    # The runtimes round a tie in int8 in different ways, so each is held against itself.
    agree(project, bundle, images, tmp_path, "openvino")
