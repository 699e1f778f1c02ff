"""A device has no torch: bench must not need it, nor anything else of the training side."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import vcompress.bench

SOURCE = Path(vcompress.bench.__path__[0])
TRAINING = ("torch", "torchvision", "onnx", "onnxscript", "sklearn", "accelerate", "timm",
            "safetensors", "torch_pruning", "vcompress.compress", "vcompress.export")  # fmt: skip

BLOCKED = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if any(name == b or name.startswith(b + ".") for b in {TRAINING!r}):
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Block())
"""


def vbench(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """`vbench` where the training side cannot be imported, nor in the processes that it starts."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BLOCKED)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    program = "import sys; from vcompress.bench.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", program, *argv, "--no-cold-start"], capture_output=True, text=True,
        check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


def test_a_model_is_measured_where_the_training_side_cannot_be_imported(
    models: Path, tmp_path: Path
) -> None:
    model = str(models / "classifier.onnx")
    done = vbench(tmp_path / "s", model, "--threads", "1", "--seconds", "0.2", "--profile")
    assert done.returncode == 0, done.stderr
    assert "latency, median" in done.stdout


def test_a_bundle_as_a_module_says_that_torch_is_missing(models: Path, tmp_path: Path) -> None:
    from vcompress.bench.bundle import bundle

    with bundle.create(
        tmp_path / "b", input=bundle.InputSpec("x", (3, 32, 32)),
        preprocess=bundle.Preprocess(size=(32, 32)), labels=("a", "b"), data=None, history=(),
    ) as staging:  # fmt: skip
        (staging / "model.onnx").write_bytes((models / "classifier.onnx").read_bytes())
    done = vbench(tmp_path / "s", str(tmp_path / "b"), "--runtime", "torch")
    assert done.returncode == 4, done.stderr
    assert "torch cannot be imported" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_file_of_bench_imports_the_training_side_at_its_top() -> None:
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.parse(file.read_text()).body:
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                assert not name.startswith(TRAINING), f"{file.name} imports {name}"


@pytest.mark.slow
def test_bench_installs_and_runs_in_an_environment_without_torch(
    models: Path, tmp_path: Path
) -> None:
    root = SOURCE.parent
    if not (root / "pyproject.toml").is_file():
        pytest.skip("bench is not run from a checkout")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*argv: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(a) for a in argv], capture_output=True, text=True, env=clean, check=False,
            cwd=tmp_path,
        )  # fmt: skip

    done = run(python, "-m", "pip", "install", "-q", f"{root}[cpu]")
    assert done.returncode == 0, done.stderr[-2000:]
    assert run(python, "-c", "import torch").returncode != 0
    done = run(tmp_path / "env" / "bin" / "vbench", models / "classifier.onnx", "--seconds", "0.5")
    assert done.returncode == 0, done.stderr
    assert "latency, median" in done.stdout
