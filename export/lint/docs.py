"""Writes the rules into docs/lint.md: `python -m vcompress.export.lint.docs`."""

from __future__ import annotations

from pathlib import Path

from .rules import RULES

PAGE = "docs/lint.md"
BEGIN, END = "<!-- rules -->", "<!-- end of rules -->"
_EFFECT = {"blocks": "blocked", "unknown": "unverified", "builds": "builds"}


def table(target: str) -> str:
    """The rules of a target as a table in Markdown."""
    lines = ["| rule | severity | verdict | what | cure |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| `{rule.id}` | {rule.severity} | {_EFFECT[rule.effect]} | {rule.what} | {rule.cure} |"
        for rule in RULES.values()
        if target in rule.targets
    ]
    return "\n".join(lines)


def page(text: str) -> str:
    """A page with its part between the two marks made anew.

    Raises:
        ValueError: the marks are missing.
    """
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    heading = "## TensorRT and TensorRT-RTX"
    rules = f"{heading}\n\n{table('tensorrt-rtx')}\n\n## ONNX Runtime\n\n{table('onnxruntime')}"
    return f"{before}{BEGIN}\n{rules}\n{END}{after}"


if __name__ == "__main__":
    path = Path(__file__).parents[2] / PAGE
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
