"""Help texts name their quantity first; no docstring begins in the middle of a sentence."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from vcompress.bench.cli import parser

ROOT = Path(__file__).parents[1]
SOURCES = sorted(p for d in ("bench", "export", "compress") for p in (ROOT / d).rglob("*.py"))
FLAGS = [
    *(ROOT / "compress/commands").glob("*.py"), *(ROOT / "compress/stages").glob("*.py"),
    ROOT / "compress/options.py", ROOT / "compress/training/config.py",
]  # fmt: skip
NO_NOUN = ("Of ", "What ", "Where ", "How ", "Which ", "By ", "At ", "Your ", "Anybody")


def texts(file: Path) -> Iterator[tuple[int, str]]:
    """Every string that stands alone, as docstrings do: line and text."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            yield node.lineno, node.value.value.strip()


def flags(file: Path) -> Iterator[tuple[str, str | None]]:
    """Fields of the dataclasses `Command`, `Config`, `Options`, ... with the text below each."""
    for kind in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(kind, ast.ClassDef) or not kind.name.endswith(
            ("Command", "Config", "Options", "Flags")
        ):
            continue
        inherits = any(isinstance(base, ast.Name) for base in kind.bases)
        for field, below in zip(kind.body, [*kind.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                said = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                text = str(below.value.value) if said else None  # type: ignore[union-attr]
                nested = "OmitArgPrefixes" in ast.unparse(field) or "only(" in ast.unparse(field)
                if text is not None or not (inherits or nested):
                    yield field.target.id, text


@pytest.mark.parametrize("file", FLAGS, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_every_flag_has_a_text_that_begins_with_what_it_is(file: Path) -> None:
    for name, text in flags(file):
        assert text, f"{file.name}: --{name} has no help"
        assert not text.startswith(NO_NOUN), f"{file.name}: --{name}: {text}"


def test_every_flag_of_vbench_has_a_text() -> None:
    actions = [a for a in parser()._actions if a.option_strings != ["-h", "--help"]]
    assert len(actions) > 30
    for action in actions:
        assert action.help and not action.help.capitalize().startswith(NO_NOUN), action.dest


def test_no_docstring_begins_with_a_bare_of() -> None:
    bare = [
        f"{file.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for file in SOURCES
        for line, text in texts(file)
        if text.startswith("Of ")
    ]
    assert not bare, "\n".join(bare)
