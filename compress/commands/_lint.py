"""`vcompress lint` at work: the findings by rule as text."""

from __future__ import annotations

from itertools import groupby

from vcompress.export.lint import Report

_SHOWN = 3
_MEANING = {
    "blocked": "it will not build",
    "unverified": "it may build; see the findings",
    "likely": "no rule stands against building it",
    "verified": "built here now",
}


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
