"""`report.html` of a bundle: what every stage cost in accuracy and gained in latency and size.

One self-contained page, drawn from the history alone; it opens with no network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .budget import asked_and_reached
from .engines import engine_section
from .latency import across, measured_in, missed, remarks, title
from .robustness import robustness_section
from .verdict import verdict_section

WIDTH, HEIGHT = 460, 320
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 18, 46
Entry = Mapping[str, Any]
# By these a page that is drawn again, with new numbers of the same network, finds the part anew.
_SECTION, _SECTION_END = "<!-- of the last stage alone -->", "<!-- up to here -->"

_STYLE = """
:root { --ink:#1c2430; --soft:#5d6878; --line:#dfe4ea; --page:#fff; --mark:#1f6feb; --last:#1a7f37;
  --bar:#9db8e6 }
@media (prefers-color-scheme: dark) { :root { --ink:#e6e9ee; --soft:#9aa5b4; --line:#323a45;
  --page:#12161c; --mark:#58a6ff; --last:#3fb950; --bar:#34517f } }
body { font:15px/1.5 system-ui,sans-serif; color:var(--ink); background:var(--page);
  max-width:1000px; margin:2rem auto; padding:0 1rem }
h1 { font-size:1.5rem; margin:0 } h2 { font-size:1.1rem; margin:2rem 0 .5rem }
p.lead { font-size:1.05rem; margin:.4rem 0 1.2rem } .soft { color:var(--soft) }
figure { display:inline-block; margin:0 16px 0 0; max-width:100% }
figcaption { color:var(--soft); font-size:.85rem }
svg { max-width:100%; height:auto } svg text { fill:var(--ink); font-size:12px }
svg .grid { stroke:var(--line) } svg .soft { fill:var(--soft) }
svg .whisker { stroke:var(--bar); stroke-width:3 } svg .way { stroke:var(--soft);
  stroke-dasharray:3 4; fill:none } svg .dot { fill:var(--mark) } svg .last { fill:var(--last) }
svg .number { fill:#fff; font-weight:600; text-anchor:middle }
.wide { overflow-x:auto } table { border-collapse:collapse; width:100%; font-size:.92rem }
th,td { text-align:right; padding:.35rem .5rem; border-bottom:1px solid var(--line);
  white-space:nowrap; vertical-align:top }
th { color:var(--soft); font-weight:600 } th.left,td.left { text-align:left }
td small { display:block; color:var(--soft) } details { margin:.4rem 0 }
pre { overflow-x:auto; border:1px solid var(--line); padding:.6rem; font-size:.82rem }
"""


def write_report(
    path: Path,
    history: Sequence[Entry],
    data: Mapping[str, Any] | None,
    comparison: Mapping[str, Any] | None = None,
    engines: Sequence[Mapping[str, Any]] = (),
    section: str = "",
) -> None:
    """Write the page. `comparison` holds the first and last model measured side by side,
    `engines` the records of the bundle's engines, `section` HTML of the last stage alone."""
    path.write_text(render(history, data, comparison, engines, section), encoding="utf-8")


def render(
    history: Sequence[Entry],
    data: Mapping[str, Any] | None,
    comparison: Mapping[str, Any] | None = None,
    engines: Sequence[Mapping[str, Any]] = (),
    section: str = "",
) -> str:
    """The page as text."""
    entries = [e for e in history if e.get("metrics")]
    title = _title(entries)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(summary(entries, comparison))}</p>',
        _figures(entries),
        "<h2>Stages</h2>",
        _table(entries),
        _conditions(entries, data),
    ]
    if comparison is not None:
        body.append(_comparison(comparison))
    body += verdict_section(entries)
    body += robustness_section(entries)
    body += engine_section(engines)
    if section:
        body.append(f"{_SECTION}{section}{_SECTION_END}")
    body += ["<h2>How each stage was made</h2>", *map(_details, entries)]
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def section_of(page: str) -> str:
    """The `section` that `page` was drawn with; empty where there was none."""
    return page.partition(_SECTION)[2].partition(_SECTION_END)[0]


def _title(entries: Sequence[Entry]) -> str:
    """Each stage, with the network where it changes."""
    parts, before = [], None
    for entry in entries:
        parts.append(entry["stage"] if entry["model"] == before else
                     f"{entry['stage']} {entry['model']}")  # fmt: skip
        before = entry["model"]
    return " → ".join(parts)


def summary(entries: Sequence[Entry], comparison: Mapping[str, Any] | None = None) -> str:
    """The last stage against the first one, or the one it was measured beside, in a sentence."""
    stage = comparison.get("stage", 1) if comparison is not None else 1
    first, last = entries[stage - 1]["metrics"], entries[-1]["metrics"]
    if len(entries) == 1:
        return f"{entries[0]['model']}, one stage so far: {entries[0]['stage']}."
    size = first["onnx_bytes"] / last["onnx_bytes"]
    text = f"{_times(size, 'smaller', 'larger')} than stage {stage}"
    if first["latency"] and last["latency"]:
        speed = first["latency"]["median_ms"] / last["latency"]["median_ms"]
        runtimes = across(first["latency"], last["latency"])
        if comparison is not None:
            speed, runtimes = 1 / comparison["ratio"], ""
        faster = _times(speed, "lower median latency", "higher median latency")
        text = f"{faster}{f' ({runtimes})' if runtimes else ''} and {text}"
    if first["test"] and last["test"]:
        points = 100 * (last["test"]["top1"] - first["test"]["top1"])
        text += f", with {points:+.2f} points of top-1 accuracy"
    return text + "."


def _times(ratio: float, better: str, worse: str) -> str:
    return f"{ratio:.1f} times {better}" if ratio >= 1 else f"{1 / ratio:.1f} times {worse}"


def _figures(entries: Sequence[Entry]) -> str:
    figures = scatter_figures(entries)
    if not figures:
        return '<p class="soft">No data were given, so there is no accuracy to draw.</p>'
    note = "Numbers are stages; bars are 95 % intervals of the accuracy. Up and left is better."
    return (
        "".join(f"<figure>{figure}</figure>" for figure in figures)
        + f'<p class="soft"><small>{note}</small></p>'
    )


def scatter_figures(entries: Sequence[Entry]) -> list[str]:
    """Accuracy against latency, and against size, as SVG; empty where no accuracy was measured."""
    measured = [e["metrics"] for e in entries if e.get("metrics")]
    scored = [e for e in entries if e.get("metrics") and e["metrics"]["test"]]
    if not scored or not all(m["latency"] for m in measured):
        return []
    return [
        _scatter(scored, lambda m: float(m["latency"]["median_ms"]), "median latency, ms (log)"),
        _scatter(scored, lambda m: m["onnx_bytes"] / 1e6, "model.onnx, MB (log)"),
    ]


def _scatter(entries: Sequence[Entry], value: Callable[[Any], float], axis: str) -> str:
    """Top-1 in per cent against a logarithmic axis, as SVG."""
    xs = [value(e["metrics"]) for e in entries]
    tops = [100 * e["metrics"]["test"]["top1"] for e in entries]
    lows = [100 * e["metrics"]["test"]["interval"][0] for e in entries]
    highs = [100 * e["metrics"]["test"]["interval"][1] for e in entries]
    x_low, x_high = math.log10(min(xs)) - 0.15, math.log10(max(xs)) + 0.15
    y_low: float = max(0.0, min(lows) - 0.5)
    y_high: float = min(100.5, max(highs) + 0.5)

    def x_at(x: float) -> float:
        return LEFT + (math.log10(x) - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def y_at(y: float) -> float:
        return TOP + (y_high - y) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img">']
    parts.append(f"<title>top-1 against {escape(axis)}</title>")
    for tick in _linear_ticks(y_low, y_high):
        y = y_at(tick)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="soft" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    base = HEIGHT - BOTTOM
    for tick in _log_ticks(x_low, x_high):
        x = x_at(tick)
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{base}"/>'
            f'<text class="soft" x="{x:.1f}" y="{base + 17}" text-anchor="middle">{tick:g}</text>'
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{escape(axis)}</text>"
        f'<text x="14" y="{(TOP + base) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 14 {(TOP + base) / 2})">top-1, %</text>'
    )
    points = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in zip(xs, tops, strict=True))
    parts.append(f'<polyline class="way" points="{points}"/>')
    for number, (x, y, low, high) in enumerate(zip(xs, tops, lows, highs, strict=True), 1):
        kind = "dot last" if number == len(xs) else "dot"
        at = f"{x_at(x):.1f}"
        parts.append(
            f'<line class="whisker" x1="{at}" x2="{at}" y1="{y_at(low):.1f}" '
            f'y2="{y_at(high):.1f}"/><circle class="{kind}" cx="{at}" cy="{y_at(y):.1f}" r="10">'
            f"<title>{number}: {y:.2f} %, {x:.4g}</title></circle>"
            f'<text class="number" x="{at}" y="{y_at(y) + 4:.1f}">{number}</text>'
        )
    parts.append("</svg>")
    return "".join(parts)


def _linear_ticks(low: float, high: float) -> list[float]:
    step = next(s for s in (0.25, 0.5, 1, 2, 5, 10, 20, 50) if (high - low) / s <= 7 or s == 50)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(low) - 1, math.ceil(high) + 1)
    steps = (1,) if high - low > 2.5 else (1, 2, 5)
    values = [round(m * 10.0**d, 12) for d in decades for m in steps]
    return [v for v in values if low <= math.log10(v) <= high]


def _table(entries: Sequence[Entry]) -> str:
    rows = []
    for number, entry in enumerate(entries, 1):
        metrics, base = entry["metrics"], entries[0]["metrics"]
        smaller = f"{base['onnx_bytes'] / metrics['onnx_bytes']:.1f}× smaller" if number > 1 else ""
        cells = [
            f'<td class="left">{number}</td>',
            f'<td class="left">{escape(entry["stage"])}<small>{escape(entry["model"])}</small>'
            f"{_asked_cell(entry)}</td>",
            _accuracy_cell(metrics["test"]),
            f"<td>{metrics['parameters'] / 1e6:.2f} M</td><td>{metrics['macs'] / 1e6:.1f} M</td>",
            f"<td>{metrics['onnx_bytes'] / 1e6:.2f} MB<small>{smaller}</small></td>",
            _latency_cell(metrics["latency"]),
            _faster_cell(base["latency"], metrics["latency"]) if number > 1 else "<td></td>",
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    heads = "".join(
        f'<th class="left">{h}</th>' if h in ("", "stage") else f"<th>{h}</th>"
        for h in (
            "", "stage", "top-1", "parameters", "MACs", "model.onnx", "median latency", "faster",
        )
    )  # fmt: skip
    return f'<div class="wide"><table><tr>{heads}</tr>{"".join(rows)}</table></div>'


def _asked_cell(entry: Entry) -> str:
    """What a stage was asked to cut a network to, and what it reached."""
    found = asked_and_reached(entry)
    return f"<small>{escape(found)}</small>" if found else ""


def _latency_cell(latency: Mapping[str, Any] | None) -> str:
    if not latency:
        return "<td>not measured</td>"
    spread = f"{latency['low_ms']:.3g} to {latency['high_ms']:.3g}"
    spread = ", ".join([spread, *remarks(latency)])
    return f"<td>{latency['median_ms']:.3g} ms<small>{escape(spread)}</small></td>"


def _faster_cell(base: Mapping[str, Any] | None, latency: Mapping[str, Any] | None) -> str:
    if not base or not latency:
        return "<td></td>"
    runtimes = across(base, latency)
    note = f"<small>{escape(runtimes)}</small>" if runtimes else ""
    return f"<td>{base['median_ms'] / latency['median_ms']:.1f}×{note}</td>"


def _accuracy_cell(test: Mapping[str, Any] | None) -> str:
    if not test:
        return "<td>not measured</td>"
    low, high = test["interval"]
    return (
        f"<td>{100 * test['top1']:.2f} %<small>{100 * low:.1f} to {100 * high:.1f} % "
        f"({test['correct']}/{test['n']})</small></td>"
    )


def _conditions(entries: Sequence[Entry], data: Mapping[str, Any] | None) -> str:
    latency = entries[-1]["metrics"]["latency"]
    text = "The last file does not run in ONNX Runtime on the CPU: nothing was measured there. "
    if latency:
        text = (
            f"Latency: one image, end to end, {latency['threads']} thread, "
            f"{measured_in(latency)} ({latency['provider']}), {latency['cpu']}. "
        )
        if other := missed(latency):
            text += (
                f"The last network is quantised for {other}, and this is not its latency there. "
            )
    if data is not None and latency:
        text += (
            f"Accuracy: the held-out {data['splits']['test']:,} images of {data['source']} in the "
            f"same runtime and file; Wilson intervals."
        )
    return f'<p class="soft"><small>{escape(text)}</small></p>'


def _comparison(comparison: Mapping[str, Any]) -> str:
    low, high = 1 / comparison["ratio_high"], 1 / comparison["ratio_low"]
    runtime = title(comparison.get("runtime", "onnxruntime"))
    text = (
        f"Interleaved in one process in {runtime}, the last stage is "
        f"{1 / comparison['ratio']:.1f} times faster "
        f"than stage {comparison.get('stage', 1)} (95 % interval {low:.1f} to {high:.1f}): "
        f"{comparison['verdict']}."
    )
    return f"<h2>Side by side</h2><p>{escape(text)}</p>"


def _details(entry: Entry) -> str:
    shown = {k: v for k, v in entry.items() if k != "metrics"}
    parity = entry["metrics"].get("parity")
    return (
        f"<details><summary>{escape(entry['stage'])} of {escape(entry['model'])}, "
        f"{entry.get('seconds', 0):.0f} s</summary>"
        f"<pre>{escape(json.dumps({**shown, 'parity': parity}, indent=1))}</pre></details>"
    )
