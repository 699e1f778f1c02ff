"""`report.html` of a bundle: what every stage cost in accuracy and gained in latency and size.

One self-contained page, drawn from the history alone; it opens with no network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vcompress.bench.bundle.history import Entry, Latency, Metrics, TestScore, measured, to_json
from vcompress.bench.reports import svg
from vcompress.bench.tasks.metrics import Metric, metric
from vcompress.bench.text import document, escape

from .budget import asked_and_reached
from .engines import engine_section
from .integers import integer_text
from .latency import across, measured_in, missed, remarks, title
from .robustness import robustness_section
from .speed import speed_of, text_of
from .terminal import score_title
from .verdict import verdict_section

WIDTH, HEIGHT = 460, 320
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 18, 46
_Measured = tuple[Entry, Metrics]

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
figcaption { color:var(--soft); font-size:.85rem } div figure { vertical-align:top }
div figcaption { width:0; min-width:100% }
svg { max-width:100%; height:auto } svg text { fill:var(--ink); font-size:12px }
svg .grid { stroke:var(--line) } svg .soft { fill:var(--soft) }
svg .whisker { stroke:var(--bar); stroke-width:3 } svg .way { stroke:var(--soft);
  stroke-dasharray:3 4; fill:none } svg .dot { fill:var(--mark) } svg .last { fill:var(--last) }
svg .number { fill:#fff; font-weight:600; text-anchor:middle }
.wide { overflow-x:auto } table { border-collapse:collapse; width:100%; font-size:.92rem }
th,td { text-align:right; padding:.35rem .5rem; border-bottom:1px solid var(--line);
  white-space:nowrap; vertical-align:top }
th { color:var(--soft); font-weight:600 } th.left,td.left { text-align:left }
td small { display:block; color:var(--soft) } td.left small { white-space:normal }
details { margin:.4rem 0 }
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
    entries = measured(history)
    title = _title(entries)
    body = [f"<h1>{escape(title)}</h1>"]
    if entries:
        body += [
            f'<p class="lead">{escape(summary(history, comparison))}</p>',
            _figures(entries),
            "<h2>Stages</h2>",
            _table(entries),
            _conditions(entries, data),
        ]
    if comparison is not None:
        body.append(_comparison(comparison))
    body += verdict_section(history)
    body += robustness_section(history)
    body += engine_section(engines)
    if section:
        body.append(section)
    body += ["<h2>How each stage was made</h2>", *map(_details, entries)]
    return document(title, _STYLE, "\n".join(body))


def _title(entries: Sequence[_Measured]) -> str:
    """Each stage, with the network where it changes."""
    if not entries:
        return "No stage was measured"
    parts, before = [], None
    for entry, _ in entries:
        parts.append(entry.stage if entry.model == before else f"{entry.stage} {entry.model}")
        before = entry.model
    return " → ".join(parts)


def summary(history: Sequence[Entry], comparison: Mapping[str, Any] | None = None) -> str:
    """The last stage against the first one, or the one it was measured beside, in a sentence."""
    entries = measured(history)
    stage = comparison.get("stage", 1) if comparison is not None else 1
    (_, first), (entry, last) = entries[stage - 1], entries[-1]
    if len(entries) == 1:
        return f"{entry.model}, one stage so far: {entry.stage}."
    size = first.onnx_bytes / last.onnx_bytes
    text = f"{_times(size, 'smaller', 'larger')} than stage {stage}"
    if first.latency and last.latency:
        speed = first.latency.median_ms / last.latency.median_ms
        runtimes = across(first.latency, last.latency)
        if comparison is not None:
            speed, runtimes = 1 / comparison["ratio"], ""
        faster = _times(speed, "lower median latency", "higher median latency")
        text = f"{faster}{f' ({runtimes})' if runtimes else ''} and {text}"
    if first.test and last.test and first.test.metric == last.test.metric:
        kind = metric(last.test.metric)
        text += f", with {kind.change(last.test.value - first.test.value)} of {_in_words(kind)}"
    return text + "."


def _in_words(kind: Metric) -> str:
    return f"{kind.title} accuracy" if kind.title.startswith("top-") else kind.title


def _times(ratio: float, better: str, worse: str) -> str:
    return f"{ratio:.1f} times {better}" if ratio >= 1 else f"{1 / ratio:.1f} times {worse}"


def _figures(entries: Sequence[_Measured]) -> str:
    drawn = _drawn(entries)
    if drawn is None:
        return '<p class="soft">No data were given, so there is no accuracy to draw.</p>'
    kind, points = drawn
    figures = "".join(f"<figure>{figure}</figure>" for figure in _scatters(kind, points))
    what = "accuracy" if _in_words(kind).endswith("accuracy") else kind.title
    note = (
        f"Numbers are stages; bars are 95 % intervals of the {what}. "
        f"{'Up' if kind.higher_is_better else 'Down'} and left is better."
    )
    return f'{figures}<p class="soft"><small>{escape(note)}</small></p>'


def scatter_figures(history: Sequence[Entry]) -> list[str]:
    """The task's metric against latency, and against size, as SVG; empty where it was not
    measured."""
    drawn = _drawn(measured(history))
    return [] if drawn is None else _scatters(*drawn)


_Point = tuple[TestScore, Latency, int]
"""Score, latency and bytes of a stage."""


def _drawn(entries: Sequence[_Measured]) -> tuple[Metric, list[_Point]] | None:
    """The metric of the last stage that has one, and the stages that have the same."""
    if any(found.latency is None for _, found in entries):
        return None
    scored = [
        (found.test, found.latency, found.onnx_bytes)
        for _, found in entries
        if found.test is not None and found.latency is not None
    ]
    if not scored:
        return None
    name = scored[-1][0].metric
    return metric(name), [point for point in scored if point[0].metric == name]


def _scatters(kind: Metric, points: Sequence[_Point]) -> list[str]:
    scores = [test for test, _, _ in points]
    times = [latency.median_ms for _, latency, _ in points]
    sizes = [size / 1e6 for _, _, size in points]
    return [
        _scatter(kind, scores, times, "median latency, ms (log)"),
        _scatter(kind, scores, sizes, "model.onnx, MB (log)"),
    ]


def _scatter(kind: Metric, scores: Sequence[TestScore], xs: Sequence[float], axis: str) -> str:
    """The metric, a share in per cent, against a logarithmic axis, as SVG."""
    scale = 100 if kind.unit == "%" else 1
    ys = [scale * score.value for score in scores]
    spans = [score.interval or (score.value, score.value) for score in scores]
    lows, highs = ([scale * span[end] for span in spans] for end in (0, 1))
    x_low, x_high = math.log10(min(xs)) - 0.15, math.log10(max(xs)) + 0.15
    y_low, y_high = min(lows), max(highs)
    if kind.unit == "%":
        y_low = min(max(0.0, y_low - 0.5), 100.0)
        y_high = max(min(100.5, y_high + 0.5), y_low + 0.5)
    else:
        margin = 0.05 * (y_high - y_low) or 0.05 * abs(y_high) or 1.0
        y_low, y_high = y_low - margin, y_high + margin

    base, end = HEIGHT - BOTTOM, WIDTH - RIGHT
    logarithmic, linear = svg.Axis(x_low, x_high, LEFT, end), svg.Axis(y_low, y_high, base, TOP)

    def x_at(x: float) -> float:
        return logarithmic.at(math.log10(x))

    y_at = linear.at
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img">',
        f"<title>{escape(kind.title)} against {escape(axis)}</title>",
        *svg.level(
            ((y_at(v), svg.number(v)) for v in svg.ticks(y_low, y_high, 7)), LEFT, end, 8, "soft"
        ),
        *svg.upright(
            ((x_at(v), svg.number(v)) for v in svg.log_ticks(x_low, x_high)), TOP, base, 17, "soft"
        ),
    ]
    named = kind.title + (f", {kind.unit}" if kind.unit else "")
    parts.append(
        f'<text x="{(LEFT + end) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{escape(axis)}</text>"
        f'<text x="14" y="{(TOP + base) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 14 {(TOP + base) / 2})">{escape(named)}</text>'
    )
    points = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in zip(xs, ys, strict=True))
    parts.append(f'<polyline class="way" points="{points}"/>')
    for number, (x, y, low, high) in enumerate(zip(xs, ys, lows, highs, strict=True), 1):
        dot = "dot last" if number == len(xs) else "dot"
        at = f"{x_at(x):.1f}"
        parts.append(
            f'<line class="whisker" x1="{at}" x2="{at}" y1="{y_at(low):.1f}" '
            f'y2="{y_at(high):.1f}"/><circle class="{dot}" cx="{at}" cy="{y_at(y):.1f}" r="10">'
            f"<title>{number}: {kind.text(y / scale)}, {x:.4g}</title></circle>"
            f'<text class="number" x="{at}" y="{y_at(y) + 4:.1f}">{number}</text>'
        )
    parts.append("</svg>")
    return "".join(parts)


def _table(entries: Sequence[_Measured]) -> str:
    rows = []
    _, base = entries[0]
    for number, (entry, found) in enumerate(entries, 1):
        smaller = f"{base.onnx_bytes / found.onnx_bytes:.1f}× smaller" if number > 1 else ""
        cells = [
            f'<td class="left">{number}</td>',
            f'<td class="left">{escape(entry.stage)}<small>{escape(entry.model)}</small>'
            f"{_asked_cell(entry)}</td>",
            _score_cell(found.test),
            f"<td>{found.parameters / 1e6:.2f} M</td><td>{found.macs / 1e6:.1f} M</td>",
            f"<td>{found.onnx_bytes / 1e6:.2f} MB<small>{smaller}</small></td>",
            _latency_cell(found.latency),
            _faster_cell(base.latency, found.latency) if number > 1 else "<td></td>",
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    heads = "".join(
        f'<th class="left">{h}</th>' if h in ("", "stage") else f"<th>{escape(h)}</th>"
        for h in (
            "", "stage", score_title(entries), "parameters", "MACs", "model.onnx",
            "median latency", "faster",
        )
    )  # fmt: skip
    return f'<div class="wide"><table><tr>{heads}</tr>{"".join(rows)}</table></div>'


def _asked_cell(entry: Entry) -> str:
    """What a stage was asked to cut a network to, and what it reached; how fast int8 is against
    float, and what runs in integers."""
    speed = speed_of(entry)
    texts = (speed and text_of(speed), asked_and_reached(entry), integer_text(entry))
    found = [text for text in texts if text]
    return "".join(f"<small>{escape(text)}</small>" for text in found)


def _latency_cell(latency: Latency | None) -> str:
    if latency is None:
        return "<td>not measured</td>"
    spread = f"{latency.low_ms:.3g} to {latency.high_ms:.3g}"
    spread = ", ".join([spread, *remarks(latency)])
    return f"<td>{latency.median_ms:.3g} ms<small>{escape(spread)}</small></td>"


def _faster_cell(base: Latency | None, latency: Latency | None) -> str:
    if base is None or latency is None:
        return "<td></td>"
    runtimes = across(base, latency)
    note = f"<small>{escape(runtimes)}</small>" if runtimes else ""
    return f"<td>{base.median_ms / latency.median_ms:.1f}×{note}</td>"


def _score_cell(test: TestScore | None) -> str:
    if test is None:
        return "<td>not measured</td>"
    kind = metric(test.metric)
    images = f"{test.n} images" if test.correct is None else f"{test.correct}/{test.n}"
    span = f"{kind.span(*test.interval)} " if test.interval else ""
    return f"<td>{escape(kind.text(test.value))}<small>{escape(f'{span}({images})')}</small></td>"


def _conditions(entries: Sequence[_Measured], data: Mapping[str, Any] | None) -> str:
    _, last = entries[-1]
    text = "The last file does not run in ONNX Runtime on the CPU: nothing was measured there. "
    if last.latency is not None:
        text = (
            f"Latency: one image, end to end, {last.latency.threads} "
            f"thread{'s' if last.latency.threads != 1 else ''}, "
            f"{measured_in(last.latency)} ({last.latency.provider}), {last.latency.cpu}. "
        )
        if other := missed(last.latency):
            text += (
                f"The last network is quantised for {other}, and this is not its latency there. "
            )
    if data is not None and last.latency is not None:
        what, how = "Accuracy", "Wilson"
        if last.test is not None and last.test.correct is None:
            what, how = metric(last.test.metric).title, "95 %"
        text += (
            f"{what}: the held-out {data['splits']['test']:,} images of {data['source']} in the "
            f"same runtime and file; {how} intervals."
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


def _details(each: _Measured) -> str:
    entry, found = each
    shown = to_json(replace(entry, metrics=None))
    return (
        f"<details><summary>{escape(entry.stage)} of {escape(entry.model)}, "
        f"{entry.seconds or 0:.0f} s</summary>"
        f"<pre>{escape(json.dumps({**shown, 'parity': found.parity}, indent=1))}</pre></details>"
    )
