"""`vcompress lint` at work: the findings by rule as text."""

from __future__ import annotations

from vcompress.export.lint import Finding, Report

_SHOWN = 3
_IN_ONNXRUNTIME = {
    "blocked": "it does not load",
    "unverified": "it may run; see the findings",
    "likely": "no rule stands against running it",
}
_MEANING = {
    "blocked": "it will not build",
    "unverified": "it may build; see the findings",
    "likely": "no rule stands against building it",
    "verified": "built here now",
}


def describe(report: Report) -> str:
    """The report as text: a line for each rule that is broken, its places, its cure."""
    meaning = _MEANING | (_IN_ONNXRUNTIME if report.target == "onnxruntime" else {})
    by = f" ({report.built})" if report.built else ""
    lines = [
        f"{report.path} for {report.target}: {report.verdict.upper()} - "
        f"{meaning[report.verdict]}{by}"
    ]
    by_rule: dict[tuple[str, str], list[Finding]] = {}
    for finding in report.findings:  # the worst severity first
        by_rule.setdefault((finding.severity, finding.rule), []).append(finding)
    for (severity, rule), found in by_rule.items():
        lines += ["", f"{severity} {rule} ({len(found)})"]
        for finding in found[:_SHOWN]:
            at = f"{finding.node}: " if finding.node else ""
            lines.append(f"  {at}{finding.message}")
        if len(found) > _SHOWN:
            lines.append(f"  ... and {len(found) - _SHOWN} more (--json lists all)")
        lines.append(f"  -> {found[0].cure}")
    counts = [f"{report.count(s)} {s}s" for s in ("error", "warning", "note")]
    return "\n".join([*lines, "", ", ".join(counts)])
