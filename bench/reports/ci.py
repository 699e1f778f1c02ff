"""A result for a build server: JUnit XML and a Markdown summary."""

from __future__ import annotations

import re
from xml.etree import ElementTree

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
            suite, "testcase", classname=f"vbench.{_printable(name)}", name=check.name
        )
        if check.outcome == "fail":
            ElementTree.SubElement(case, "failure", message=check.message)
        elif check.outcome == "inconclusive":
            ElementTree.SubElement(case, "error", message=f"inconclusive: {check.message}")
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
    return re.sub(r"[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)


def markdown(result: Result) -> str:
    """A summary for a pull request."""
    by_model = [terminal.rows(m) for m in result.models]
    heads = [m.artefact.name for m in result.models]
    lines = ["| | " + " | ".join(map(_cell, heads)) + " |", "|---|" + "---|" * len(heads)]
    for row in dict.fromkeys(name for r in by_model for name in r):
        cells = " | ".join(_cell(terminal.bare(r.get(row, ""))) for r in by_model)
        lines.append(f"| {row} | {cells} |")
    text = ["\n".join(lines)]
    sentence = terminal.versus_line(result)
    if sentence is not None:
        text.append(f"**{sentence.plain}**")
    if result.change:
        text.append(terminal.change_line(result.change))
    if result.checks:
        marks = {"pass": "passed", "fail": "**FAILED**", "inconclusive": "**inconclusive**"}
        text.append(
            "| gate | outcome | measured |\n|---|---|---|\n"
            + "\n".join(
                f"| {c.name} | {marks[c.outcome]} | {_cell(c.message)} |" for c in result.checks
            )
        )
    warnings = [f"- {_cell(m.artefact.name)}: {w}" for m in result.models for w in m.warnings]
    if warnings:
        text.append("\n".join(warnings))
    text.append(f"<sub>{terminal.setting(result)}, vbench {result.version}, {result.when}</sub>")
    return "\n\n".join(text) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
