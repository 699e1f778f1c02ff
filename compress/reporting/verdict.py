"""The verdict over FP32 and INT8 in words, and as a section of `report.html`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vcompress.bench.bundle.history import Entry, measured
from vcompress.bench.config import from_mapping
from vcompress.bench.errors import UserError
from vcompress.bench.tasks.metrics import metric
from vcompress.bench.text import escape

Word = Literal["quantise", "do not quantise", "cannot tell"]


@dataclass(frozen=True)
class Candidate:
    """One file, measured."""

    precision: str
    metric: str
    value: float
    """The task's first metric on the held-out images."""
    images: int
    median_ms: float
    """One image, one thread, of the interleaved runs."""
    size_bytes: float
    extra: Mapping[str, Any] = field(default_factory=dict, metadata={"rest": True})

    @staticmethod
    def from_older(data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Older records knew classification alone."""
        return data if "metric" in data else {**data, "metric": "top1", "value": data.get("top1")}


@dataclass(frozen=True)
class Verdict:
    """What was decided, and on what grounds, as a bundle's history keeps it."""

    word: Word
    reason: str
    target: str
    cpu: str
    faster: float
    """FP32 time over INT8 time."""
    faster_low: float
    """At 99 %, as is `faster_high`."""
    faster_high: float
    lost_points: float
    max_drop: float
    candidates: tuple[Candidate, ...]
    not_tried: Mapping[str, str]
    extra: Mapping[str, Any] = field(default_factory=dict, metadata={"rest": True})

    def __post_init__(self) -> None:
        if not self.candidates:
            raise UserError("verdict: no candidates, expected some.")


def read(record: Mapping[str, Any]) -> Verdict:
    """The verdict that a bundle's history keeps.

    Raises:
        UserError: it is no such record.
    """
    return from_mapping(Verdict, record, "verdict")


def sentences(verdict: Verdict) -> list[str]:
    """A verdict in words."""
    lines = [
        f"{c.precision}: {metric(c.metric).title} {metric(c.metric).text(c.value)} on {c.images} "
        f"images, {c.median_ms:.3g} ms, {c.size_bytes / 1e6:.2f} MB"
        for c in verdict.candidates
    ]
    lines += [f"{name}: not tried: {why}" for name, why in verdict.not_tried.items()]
    subject = {
        "quantise": "quantise this model for this target",
        "do not quantise": "do not quantise this model for this target",
        "cannot tell": "cannot tell whether to quantise this model for this target",
    }[verdict.word]
    lines.append(
        f"verdict for {verdict.target} on {verdict.cpu}: {subject}: {verdict.reason} "
        f"(int8 is {verdict.faster:.2f} times faster, {verdict.faster_low:.2f} to "
        f"{verdict.faster_high:.2f} at 99 %)."
    )
    return lines


def verdict_section(history: Sequence[Entry]) -> list[str]:
    """HTML of the last verdict in the history; nothing where there is none."""
    found = [
        entry.details["verdict"] for entry, _ in measured(history) if entry.details.get("verdict")
    ]
    if not found:
        return []
    try:
        verdict = read(found[-1])
    except UserError:  # of another version, or somebody's own
        return []
    rows = "".join(
        f'<tr><td class="left">{escape(c.precision)}</td>'
        f"<td>{escape(metric(c.metric).text(c.value))}<small>{c.images} images</small></td>"
        f"<td>{c.median_ms:.3g} ms</td><td>{c.size_bytes / 1e6:.2f} MB</td></tr>"
        for c in verdict.candidates
    )
    rows += "".join(
        f'<tr><td class="left">{escape(name)}</td><td class="left" colspan="3">not tried: '
        f"{escape(why)}</td></tr>"
        for name, why in verdict.not_tried.items()
    )
    judged = metric(verdict.candidates[0].metric)
    heads = (
        f'<th class="left"></th><th>{escape(judged.title)}</th><th>median latency</th><th>size</th>'
    )
    return [
        "<h2>Verdict</h2>",
        f"<p>{escape(sentences(verdict)[-1])}</p>",
        f'<div class="wide"><table><tr>{heads}</tr>{rows}</table></div>',
    ]
