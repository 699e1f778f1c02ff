"""`--help` answers at once and loads nothing heavy; tests/benchmarks/startup.py takes the time."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {
    "torch", "torchvision", "onnx", "onnxruntime", "scipy", "numpy", "sklearn", "timm",
    "accelerate", "torch_pruning", "onnxscript", "PIL", "safetensors",
}  # fmt: skip

PROBE = """
import json, sys
from vcompress.{package}.cli import main
try:
    status = main({argv!r})
except SystemExit as end:
    status = end.code
print(json.dumps([status, sorted({{name.partition(".")[0] for name in sys.modules}})]))
"""


def loaded(package: str, argv: list[str]) -> tuple[int, set[str], str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(package=package, argv=argv)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    text, _, last = done.stdout.rstrip().rpartition("\n")
    status, modules = json.loads(last)
    return status or 0, set(modules), text


@pytest.mark.parametrize(
    ("package", "argv", "shown"),
    [
        ("bench", ["--help"], "--data"),
        ("compress", ["--help"], "distill"),
        ("compress", ["distill", "--help"], "--temperature"),
        ("compress", ["quantize", "--help"], "--target"),
        ("compress", ["import", "--help"], "--labels"),
    ],
)
def test_help_loads_nothing_heavy(package: str, argv: list[str], shown: str) -> None:
    status, modules, text = loaded(package, argv)
    assert status == 0
    assert shown in text
    assert not modules & HEAVY


def test_a_wrong_command_and_a_wrong_option_load_nothing_heavy() -> None:
    for argv in (["finetun"], ["finetune", "--model", "r18", "--epoch", "x"], ["prune"]):
        status, modules, _ = loaded("compress", argv)
        assert status == 2
        assert not modules & HEAVY
