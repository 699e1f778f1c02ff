"""The verdict over FP32 and INT8 in words, and as a section of `report.html`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from vcompress.bench.bundle.history import Entry, measured
from vcompress.bench.tasks.metrics import metric


def sentences(verdict: Mapping[str, Any]) -> list[str]:
    """A verdict, as a bundle's history keeps it, in words."""
    lines = [
        f"{c['precision']}: {_score(c)}, {c['median_ms']:.3g} ms, {c['size_bytes'] / 1e6:.2f} MB"
        for c in verdict["candidates"]
    ]
    lines += [f"{name}: not tried: {why}" for name, why in verdict["not_tried"].items()]
    subject = {
        "quantise": "quantise this model for this target",
        "do not quantise": "do not quantise this model for this target",
        "cannot tell": "cannot tell whether to quantise this model for this target",
    }[verdict["word"]]
    lines.append(
        f"verdict for {verdict['target']} on {verdict['cpu']}: {subject}: {verdict['reason']} "
        f"(int8 is {verdict['faster']:.2f} times faster, {verdict['faster_low']:.2f} to "
        f"{verdict['faster_high']:.2f} at 99 %)."
    )
    return lines


def _score(candidate: Mapping[str, Any]) -> str:
    """Such as `top-1 98.61 % on 359 images`."""
    name, value = _metric_of(candidate)
    return f"{metric(name).title} {metric(name).text(value)} on {candidate['images']} images"


def _metric_of(candidate: Mapping[str, Any]) -> tuple[str, float]:
    """Older records knew classification alone."""
    if "metric" in candidate:
        return str(candidate["metric"]), float(candidate["value"])
    return "top1", float(candidate["top1"])


def verdict_section(history: Sequence[Entry]) -> list[str]:
    """HTML of the last verdict in the history; nothing where there is none."""
    found = [
        entry.details["verdict"] for entry, _ in measured(history) if entry.details.get("verdict")
    ]
    if not found:
        return []
    verdict = found[-1]
    rows = "".join(
        f'<tr><td class="left">{escape(c["precision"])}</td>'
        f"<td>{escape(metric(name).text(value))}<small>{c['images']} images</small></td>"
        f"<td>{c['median_ms']:.3g} ms</td><td>{c['size_bytes'] / 1e6:.2f} MB</td></tr>"
        for c in verdict["candidates"]
        for name, value in (_metric_of(c),)
    )
    rows += "".join(
        f'<tr><td class="left">{escape(name)}</td><td class="left" colspan="3">not tried: '
        f"{escape(why)}</td></tr>"
        for name, why in verdict["not_tried"].items()
    )
    judged = metric(_metric_of(verdict["candidates"][0])[0])
    heads = f'<th class="left"></th><th>{judged.title}</th><th>median latency</th><th>size</th>'
    return [
        "<h2>Verdict</h2>",
        f"<p>{escape(sentences(verdict)[-1])}</p>",
        f'<div class="wide"><table><tr>{heads}</tr>{rows}</table></div>',
    ]
