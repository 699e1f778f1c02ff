"""The verdict over FP32 and INT8 in words, and as a section of `report.html`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from vcompress.bench.bundle.history import Entry, measured


def sentences(verdict: Mapping[str, Any]) -> list[str]:
    """A verdict, as a bundle's history keeps it, in words."""
    lines = [
        f"{c['precision']}: top-1 {100 * c['top1']:.2f} % ({c['correct']}/{c['images']}), "
        f"{c['median_ms']:.3g} ms, {c['size_bytes'] / 1e6:.2f} MB"
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
        f"<td>{100 * c['top1']:.2f} %<small>{c['correct']}/{c['images']}</small></td>"
        f"<td>{c['median_ms']:.3g} ms</td><td>{c['size_bytes'] / 1e6:.2f} MB</td></tr>"
        for c in verdict["candidates"]
    )
    rows += "".join(
        f'<tr><td class="left">{escape(name)}</td><td class="left" colspan="3">not tried: '
        f"{escape(why)}</td></tr>"
        for name, why in verdict["not_tried"].items()
    )
    heads = '<th class="left"></th><th>top-1</th><th>median latency</th><th>size</th>'
    return [
        "<h2>Verdict</h2>",
        f"<p>{escape(sentences(verdict)[-1])}</p>",
        f'<div class="wide"><table><tr>{heads}</tr>{rows}</table></div>',
    ]
