"""Rules, findings, and the verdict on a whole file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
Effect = Literal["blocks", "unknown", "builds"]
Verdict = Literal["blocked", "unverified", "likely", "verified"]
ORDER: tuple[Severity, ...] = ("error", "warning", "note")
Say = Callable[[str, str, str], None]
"""Takes the rule, the node and the message of a finding."""


@dataclass(frozen=True)
class Rule:
    """One thing that a file should not do."""

    id: str
    severity: Severity
    effect: Effect
    """blocks: it does not build. unknown: nothing is known of it. builds: it costs something."""
    what: str
    cure: str
    targets: tuple[str, ...] = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class Finding:
    """A rule broken at one place."""

    rule: str
    severity: Severity
    effect: Effect
    node: str
    """Name of the node, or of the tensor that it makes; empty where it is the whole file."""
    message: str
    cure: str


@dataclass(frozen=True)
class Report:
    """All that lint says of a file."""

    path: str
    target: str
    verdict: Verdict
    findings: tuple[Finding, ...]
    built: str = ""
    """What built it here, such as tensorrt_rtx 1.7.1 for SM 89; empty where nothing was built."""
    seconds: float = 0.0

    def count(self, severity: Severity) -> int:
        """How many findings of a severity there are."""
        return sum(f.severity == severity for f in self.findings)

    def fails(self, at: str) -> bool:
        """Whether the file fails at `error`, `warning` or `never`. A blocked file is an error."""
        if at == "never":
            return False
        bad = self.verdict == "blocked" or self.count("error") > 0
        return bad or (at == "warning" and self.count("warning") > 0)

    def to_json(self) -> dict[str, Any]:
        """JSON's own types."""
        return {"schema_version": 1, **asdict(self)}


def verdict_of(findings: Iterable[Finding]) -> Verdict:
    """blocked: it will not build. unverified: an error that builds, or something that nothing is
    known about. likely: neither."""
    found = list(findings)
    if any(f.effect == "blocks" for f in found):
        return "blocked"
    if any(f.effect == "unknown" or f.severity == "error" for f in found):
        return "unverified"
    return "likely"
