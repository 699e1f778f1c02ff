"""`vcompress lint` at work: the findings by rule as text, the JSON, the exit status."""

from __future__ import annotations

import json
from itertools import groupby
from typing import TYPE_CHECKING

from vcompress.bench.bundle import MODEL
from vcompress.bench.engine import Settings
from vcompress.export.lint import Report, lint

if TYPE_CHECKING:
    from .lint import Command

_SHOWN = 3
_MEANING = {
    "blocked": "it will not build",
    "unverified": "it may build; see the findings",
    "likely": "no rule stands against building it",
    "verified": "built here now",
}


def run_lint(command: Command) -> tuple[str, int]:
    """What to print, and the status: 0, or 1 where the file fails `--fail-on`."""
    path = command.model / MODEL if command.model.is_dir() else command.model
    settings = None
    if command.build:
        settings = Settings(sm=command.sm, batch=command.batch, hw=command.hw)
    report = lint(path, command.target, build=settings)
    as_json = json.dumps(report.to_json(), indent=1)
    if command.json is not None and str(command.json) == "-":
        text = as_json
    else:
        if command.json is not None:
            command.json.write_text(as_json + "\n", encoding="utf-8")
        text = describe(report)
    return text, int(report.fails(command.fail_on))


def describe(report: Report) -> str:
    """The report as text: a line for each rule that is broken, its places, its cure."""
    by = f" ({report.built})" if report.built else ""
    lines = [
        f"{report.path} for {report.target}: {report.verdict.upper()} - "
        f"{_MEANING[report.verdict]}{by}"
    ]
    for (severity, rule), group in groupby(report.findings, lambda f: (f.severity, f.rule)):
        found = list(group)
        lines += ["", f"{severity} {rule} ({len(found)})"]
        for finding in found[:_SHOWN]:
            at = f"{finding.node}: " if finding.node else ""
            lines.append(f"  {at}{finding.message}")
        if len(found) > _SHOWN:
            lines.append(f"  ... and {len(found) - _SHOWN} more (--json lists all)")
        lines.append(f"  -> {found[0].cure}")
    counts = [f"{report.count(s)} {s}s" for s in ("error", "warning", "note")]
    return "\n".join([*lines, "", ", ".join(counts)])
