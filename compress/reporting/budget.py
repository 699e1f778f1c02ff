"""A budget in words: asked and reached."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vcompress.bench.bundle.history import Entry
from vcompress.bench.errors import UserError
from vcompress.bench.gates.limits import Budget, parse


def asked_and_reached(entry: Entry) -> str | None:
    """Such as "asked macs<=0.5, reached 0.4999", from an entry of a bundle's history.

    None where a stage had no budget, or the entry is none of ours.
    """
    asked = entry.details.get("asked")
    if not isinstance(asked, Mapping) or len(asked) != 1:
        return None
    ((name, value),) = asked.items()
    try:
        budget = parse(f"{name}<={value}")
        reached = _reached(budget, entry)
    except (UserError, LookupError, TypeError, ValueError, OverflowError):
        return None
    return f"asked {budget.text}, reached {reached}"


def _reached(budget: Budget, entry: Entry) -> str:
    """The value in the budget's own unit."""
    details = entry.details
    if budget.relative:
        return f"{float(details['achieved'][budget.name]):.4g}"
    if budget.kind == "latency_ms":
        return f"{float(details['latency_measured_ms']):.4g}"
    if budget.kind == "size_mb":  # the file that ships, where there is one
        if entry.metrics is not None:
            return f"{entry.metrics.onnx_bytes / 1e6:.4g}"
        return f"{float(details['size_measured_mb']):.4g}"
    return f"{int(details['after'][budget.kind])}"


def budget_lines(history: Iterable[Entry]) -> list[str]:
    """A line for each stage that had a budget."""
    found = ((entry, asked_and_reached(entry)) for entry in history)
    return [f"{entry.stage}: {text}" for entry, text in found if text]
