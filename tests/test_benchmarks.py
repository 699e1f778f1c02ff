"""What the scripts and examples import from the project is there: they run too rarely to notice."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted([*(ROOT / "tests" / "benchmarks").glob("*.py"), *(ROOT / "examples").glob("*.py")])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_what_a_script_imports_is_there(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("vcompress"):
            continue
        module = importlib.import_module(str(node.module))
        for alias in node.names:
            there = hasattr(module, alias.name) or importlib.util.find_spec(
                f"{node.module}.{alias.name}"
            )
            assert there, f"{script.name}:{node.lineno}: {node.module} has no {alias.name}"
