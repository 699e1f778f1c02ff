"""CONTRIBUTING.md tells a newcomer the truth: rooms, files and functions are where it says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
QUESTIONS = re.findall(r"^\| (.+\?) \| `(.+)` \| `(.+)` \|$", TEXT, re.MULTILINE)


def test_a_newcomers_questions_are_there() -> None:
    assert len(QUESTIONS) >= 10


@pytest.mark.parametrize(("question", "file", "name"), QUESTIONS, ids=lambda x: x.split("/")[-1])
def test_a_question_leads_to_a_file_with_the_function(question: str, file: str, name: str) -> None:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    defined = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    assert name in defined, f"{question} {file} has no {name}"


def test_every_file_that_is_named_exists() -> None:
    named = set(re.findall(r"`((?:bench|export|compress|tests)/[\w/]+\.\w+)`", TEXT))
    assert len(named) > 15
    missing = [name for name in sorted(named) if not (ROOT / name).is_file()]
    assert all(name.endswith("/NAME.py") for name in missing), missing


def test_each_half_of_a_task_lists_every_method() -> None:
    for half in ("bench", "compress"):
        tree = ast.parse((ROOT / half / "tasks/task.py").read_text(encoding="utf-8"))
        name = "Task" if half == "bench" else "TrainingTask"
        protocol = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
        part = TEXT[TEXT.index(f"| of `{name}` |") :]
        table = part[: part.index("\n\n")]
        listed = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.+?) \|", table, re.M))))
        methods = {n.name for n in protocol.body if isinstance(n, ast.FunctionDef)} - {"name"}
        assert listed - {name} == methods
