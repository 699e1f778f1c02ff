"""A result for a build server: JUnit XML and a Markdown summary."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from ..text import printable, shown
from . import terminal
from .result import Result


def junit(result: Result) -> str:
    """One test case for each check of the gate; an inconclusive one counts as an error.

    Without a gate there is one case that says the model was measured.
    """
    name = result.models[-1].artefact.name
    failed = sum(c.outcome == "fail" for c in result.checks)
    unsure = sum(c.outcome == "inconclusive" for c in result.checks)
    suite = ElementTree.Element(
        "testsuite", name=f"vbench {_printable(name)}", tests=str(max(len(result.checks), 1)),
        failures=str(failed), errors=str(unsure), skipped="0", timestamp=result.when[:19],
    )  # fmt: skip
    for check in result.checks:
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"vbench.{_printable(name)}", name=_printable(check.name)
        )
        said = _printable(check.message)
        if check.outcome == "fail":
            ElementTree.SubElement(case, "failure", message=said)
        elif check.outcome == "inconclusive":
            ElementTree.SubElement(case, "error", message=f"inconclusive: {said}")
    if not result.checks:
        ElementTree.SubElement(
            suite, "testcase", classname=f"vbench.{_printable(name)}", name="measured"
        )
    out = ElementTree.SubElement(suite, "system-out")
    out.text = _printable(markdown(result))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _printable(text: str) -> str:
    """XML 1.0 has no control characters, and a file name may."""
    return re.sub(r"[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", shown(text))


def markdown(result: Result) -> str:
    """A summary for a pull request."""
    by_model = [terminal.rows(m) for m in result.models]
    heads = [m.artefact.name for m in result.models]
    lines = ["| | " + " | ".join(map(_inline, heads)) + " |", "|---|" + "---|" * len(heads)]
    for row in dict.fromkeys(name for r in by_model for name in r):
        cells = " | ".join(_inline(terminal.bare(r.get(row, ""))) for r in by_model)
        lines.append(f"| {_inline(row)} | {cells} |")
    text = ["\n".join(lines)]
    sentence = terminal.versus_line(result)
    if sentence is not None:
        text.append(f"**{_inline(sentence.plain)}**")
    if result.change:
        text.append(_inline(terminal.change_line(result.change)))
    if result.checks:
        marks = {"pass": "passed", "fail": "**FAILED**", "inconclusive": "**inconclusive**"}
        text.append(
            "| gate | outcome | measured |\n|---|---|---|\n"
            + "\n".join(
                f"| {_inline(c.name)} | {marks[c.outcome]} | {_inline(c.message)} |"
                for c in result.checks
            )
        )
    warnings = [
        f"- {_inline(m.artefact.name)}: {_inline(w)}" for m in result.models for w in m.warnings
    ]
    if warnings:
        text.append("\n".join(warnings))
    text.append(
        f"<sub>{_inline(terminal.setting(result))}, vbench {result.version}, {result.when}</sub>"
    )
    return "\n\n".join(text) + "\n"


def _inline(text: str) -> str:
    """Text as it is on one line of Markdown, in a cell too: names from files make no elements,
    links, pictures, code or emphasis."""
    plain = printable(" ".join(text.split("\n")))
    plain = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|`*\[\]])", r"\\\1", plain)
