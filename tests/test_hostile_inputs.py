"""The hostile inputs of tests/benchmarks/hostile_inputs.py, a few of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "benchmarks" / "hostile_inputs.py"


def run(*arguments: str) -> dict[str, list[int]]:
    """Inputs, refused, taken, crashes of the runtime, and bad ones, by kind. None may be bad."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True, text=True, check=False, timeout=3000,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    return {row[0]: [int(cell.replace(",", "")) for cell in row[1:6]] for row in rows}


def test_a_few_of_the_kinds_that_devices_read_are_refused_or_understood() -> None:
    kinds = ("onnx", "manifests", "archives", "npz", "signatures", "tables")
    found = run("--share", "0.02", "--seed", "7", "--kinds", *kinds)
    assert set(found) == {*kinds, "all"}
    for kind in kinds:
        inputs, refused, taken, runtime, bad = found[kind]
        assert inputs == refused + taken + runtime
        assert bad == 0
        assert refused > 0
    assert found["onnx"][2] > 100  # what is taken is held against the parsers
    assert found["all"][0] > 500


@pytest.mark.slow
def test_fifteen_hundred_of_every_kind_are_refused_or_understood() -> None:
    found = run("--share", "0.1", "--seed", "8")
    assert found["all"][0] > 1500
    assert found["all"][4] == 0
